"""Schema and host-side checks of ``block_quant``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema.rms_norm import check_output

SCALE_FORMATS = ("float32", "ue8m0")

schema.define("block_quant(Tensor x, int group, bool power_of_two, Tensor(a!) q, Tensor(b!) scale) -> ()")


def check(x: Tensor, *, group: int, scale_format: str) -> None:
    """Raise what the host can know about the arguments of ``block_quant``."""
    schema.expect_shape("x", x, (None, None), "[T, H]")
    schema.expect_dtype("x", x, schema.FLOATS)
    schema.expect_rows("x", x)
    check_group(group)
    if scale_format not in SCALE_FORMATS:
        raise ValueError(f"scale_format={scale_format!r} is unknown; use one of {', '.join(SCALE_FORMATS)}")


def check_group(group: int, largest: int = 2**31 - 1) -> None:
    """Raise ValueError for a group of no values, or of more than the kernel takes."""
    schema.expect_range("group", group, 1, largest, "MiniMax-M2 uses 128")


def allocated(
    num_tokens: int, width: int, *, group: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Codes ``[T, width]`` and one float32 scale a group, unwritten."""
    codes = torch.empty((num_tokens, width), dtype=dtype, device=device)
    return codes, torch.empty((num_tokens, -(-width // group)), dtype=torch.float32, device=device)


def check_outputs(
    q: Tensor, scale: Tensor, *, shape: tuple[int, ...], symbol: str, group: int, dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    """Raise what the host can know about the codes ``[T, symbol]`` and scales that an ``_out`` variant fills."""
    grid = (shape[0], -(-shape[1] // group))
    check_output("q", q, shape=shape, symbols=f"[T, {symbol}]", dtype=dtype, device=device)
    check_output("scale", scale, shape=grid, symbols=f"[T, ceil({symbol}/group)]", dtype=torch.float32, device=device)
