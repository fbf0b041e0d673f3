"""Schema and host-side checks of ``block_quant``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema

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
