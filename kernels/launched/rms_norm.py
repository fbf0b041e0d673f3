"""RMSNorm over the hidden size, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import rms_norm as rms_norm_schema


def functions(launch: Launch) -> tuple[Callable[..., Tensor], Callable[..., None]]:
    """``rms_norm``, ``rms_norm_out``."""

    def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """Scale each row to root mean square 1, then each channel by its weight.

            y = x * rsqrt(mean(x^2) + eps) * weight

        x       [T, H] float32, bfloat16 or float16, row stride free
        weight  [H] dtype of x
        returns [T, H] dtype of x, contiguous

        float32 in between; one rounding, of y.

        Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
        """
        rms_norm_schema.check(x, weight)

        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)

        if y.numel() > 0:
            launch(x, weight, eps, y)
        return y

    def rms_norm_out(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
        """Do what ``rms_norm`` does, into ``y``, contiguous ``[T, H]``; it may be x itself."""
        rms_norm_schema.check(x, weight)
        rms_norm_schema.check_output("y", y, shape=tuple(x.shape), symbols="[T, H]", dtype=x.dtype, device=x.device)

        if y.numel() > 0:
            launch(x, weight, eps, y)

    return rms_norm, rms_norm_out
