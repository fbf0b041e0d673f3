"""Schema and host-side checks of ``block_dequant``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("block_dequant(Tensor q, Tensor scale, int block_rows, int block_columns, Tensor(a!) w) -> ()")


def check(q: Tensor, scale: Tensor, *, block: tuple[int, int], dtype: torch.dtype) -> None:
    """Raise what the host can know about the arguments of ``block_dequant``."""
    if q.dim() not in (2, 3):
        raise ValueError(f"q has shape {list(q.shape)}, expected [N, H] or [E, N, H]")
    schema.expect_dtype("q", q, (torch.float8_e4m3fn,))
    schema.expect_rows("q", q)
    schema.expect_range("block[0]", block[0], 1, 2**31 - 1, "MiniMax-M2 has blocks of 128 x 128")
    schema.expect_range("block[1]", block[1], 1, 2**31 - 1, "MiniMax-M2 has blocks of 128 x 128")
    grid = (*q.shape[:-2], -(-q.shape[-2] // block[0]), -(-q.shape[-1] // block[1]))
    schema.expect_shape("scale", scale, grid, "[..., ceil(N/rows), ceil(H/columns)]")
    schema.expect_dtype("scale", scale, (torch.float32,))
    schema.expect_contiguous("scale", scale)
    schema.expect_device("scale", scale, q.device)
    if dtype not in schema.FLOATS:
        raise TypeError(f"dtype={dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
