"""Weights from quantised weights and the scales of their blocks, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import block_dequant as block_dequant_schema
from minimax_m2.kernels.schema.rms_norm import check_output


def functions(launch: Launch) -> tuple[Callable[..., Tensor], Callable[..., None]]:
    """``block_dequant``, ``block_dequant_out``."""

    def block_dequant(q: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype) -> Tensor:
        """Multiply each block by its scale: ``w[i, j] = q[i, j] * scale[i // rows, j // columns]``.

        q        [N, H] or [E, N, H] e4m3, strides of rows and experts free
        scale    [..., ceil(N/rows), ceil(H/columns)] float32
        returns  shape of q, ``dtype`` float32, bfloat16 or float16, contiguous

        The product is float32 and rounds once more to ``dtype``.

        Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
        """
        block_dequant_schema.check(q, scale, block=block, dtype=dtype)

        w = torch.empty(q.shape, dtype=dtype, device=q.device)

        if w.numel() > 0:
            launch(q, scale, block[0], block[1], w)
        return w

    def block_dequant_out(
        q: Tensor, scale: Tensor, w: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype
    ) -> None:
        """Do what ``block_dequant`` does, into ``w``, contiguous, of ``dtype``."""
        block_dequant_schema.check(q, scale, block=block, dtype=dtype)
        check_output("w", w, shape=tuple(q.shape), symbols="[..., N, H]", dtype=dtype, device=q.device)

        if w.numel() > 0:
            launch(q, scale, block[0], block[1], w)

    return block_dequant, block_dequant_out
