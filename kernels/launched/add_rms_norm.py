"""Residual addition, then RMSNorm, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema


def functions(launch: Launch) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., None]]:
    """``add_rms_norm``, ``add_rms_norm_out``."""

    def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        """Add ``x`` to the residual stream and normalise the sum.

            z = x + residual;  y = z * rsqrt(mean(z^2) + eps) * weight

        x, residual  [T, H] float32, bfloat16 or float16, row strides free
        weight       [H] dtype of x
        returns      y, z, each [T, H] dtype of x, contiguous

        Statistics and y see the sum before it is stored (convention B); each output rounds once.

        Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
        """
        add_rms_norm_schema.check(x, residual, weight)

        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

        if y.numel() > 0:
            launch(x, residual, weight, eps, y, residual_out)
        return y, residual_out

    def add_rms_norm_out(
        x: Tensor, residual: Tensor, weight: Tensor, y: Tensor, residual_out: Tensor, *, eps: float
    ) -> None:
        """Do what ``add_rms_norm`` does, into contiguous ``y`` and ``residual_out``; they may be x and residual."""
        add_rms_norm_schema.check(x, residual, weight)
        add_rms_norm_schema.check_outputs(y, residual_out, x=x)

        if y.numel() > 0:
            launch(x, residual, weight, eps, y, residual_out)

    return add_rms_norm, add_rms_norm_out
