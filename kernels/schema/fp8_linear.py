"""Schema and host-side checks of ``fp8_linear`` and ``pack_fp8_linear``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema.linear import check_out_dtype

schema.define("fp8_linear(Tensor x, Tensor weight, Tensor scale, Tensor block, Tensor? x_scale, Tensor(a!) out) -> ()")


def check(x: Tensor, packed: Sequence[Tensor], *, x_scale: Tensor | None, out_dtype: torch.dtype | None) -> torch.dtype:
    """Raise what the host can know about the arguments of ``fp8_linear``; return the result's dtype."""
    weight, scale, block = packed
    schema.expect_shape("x", x, (None, None), "[T, H]")
    check_weight(weight, scale)
    schema.expect_shape("packed.weight", weight, (None, x.shape[1]), "[N, H]")
    schema.expect_shape("packed.block", block, (2,), "[2]")
    schema.expect_dtype("packed.block", block, (torch.int64,))
    schema.expect_device("packed.weight", weight, x.device)
    return check_activations(x, x_scale=x_scale, groups=scale.shape[1], out_dtype=out_dtype)


def check_blocks(
    x: Tensor, packed: Sequence[Tensor], *, x_scale: Tensor | None, out_dtype: torch.dtype | None
) -> torch.dtype:
    """Do what ``check`` does, for a weight packed in blocks of 64 outputs."""
    weight, scale, extent = packed
    schema.expect_shape("packed.extent", extent, (0, None, None, None), "[0, N, H, columns]")
    outputs, hidden, columns = extent.shape[1:]
    blocks, groups = -(-outputs // 64), -(-hidden // columns)
    schema.expect_shape("packed.weight", weight, (blocks, -(-hidden // 2), 64, 2), "[ceil(N/64), ceil(H/2), 64, 2]")
    schema.expect_dtype("packed.weight", weight, (torch.float8_e4m3fn,))
    width = 2 if scale.shape[-1] == 2 else 64
    schema.expect_shape("packed.scale", scale, (blocks, groups, width), "[ceil(N/64), ceil(H/columns), 64 or 2]")
    schema.expect_dtype("packed.scale", scale, (torch.float32,))
    schema.expect_shape("x", x, (None, hidden), "[T, H]")
    for name, part in (("packed.weight", weight), ("packed.scale", scale)):
        schema.expect_contiguous(name, part)
        schema.expect_device(name, part, x.device)
    return check_activations(x, x_scale=x_scale, groups=groups, out_dtype=out_dtype)


def check_activations(x: Tensor, *, x_scale: Tensor | None, groups: int, out_dtype: torch.dtype | None) -> torch.dtype:
    """Raise unless ``x`` and its scales fit together; return the result's dtype."""
    schema.expect_dtype("x", x, (*schema.FLOATS, torch.float8_e4m3fn))
    schema.expect_rows("x", x)
    if (x.dtype == torch.float8_e4m3fn) != (x_scale is not None):
        given = "without" if x_scale is None else "with"
        raise ValueError(f"x has dtype {x.dtype} {given} x_scale; pass x_scale with float8_e4m3fn and only then")
    if x_scale is not None:
        schema.expect_shape("x_scale", x_scale, (x.shape[0], groups), "[T, ceil(H/columns)]")
        schema.expect_dtype("x_scale", x_scale, (torch.float32,))
        schema.expect_rows("x_scale", x_scale)
        schema.expect_device("x_scale", x_scale, x.device)
    check_out_dtype(out_dtype)
    return out_dtype or (torch.float32 if x_scale is not None else x.dtype)


def check_weight(weight: Tensor, scale: Tensor) -> None:
    """Raise unless ``weight`` and ``scale`` can be an e4m3 weight and its scales."""
    schema.expect_shape("weight", weight, (None, None), "[N, H]")
    schema.expect_dtype("weight", weight, (torch.float8_e4m3fn,))
    schema.expect_rows("weight", weight)
    schema.expect_shape("scale", scale, (None, None), "[ceil(N/rows), ceil(H/columns)]")
    schema.expect_dtype("scale", scale, (torch.float32,))
    schema.expect_rows("scale", scale)
    schema.expect_device("scale", scale, weight.device)
    if min(weight.shape) < 1:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected N >= 1 and H >= 1")


def check_pack(weight: Tensor, scale: Tensor, *, block: tuple[int, int]) -> None:
    """Raise what the host can know about the arguments of ``pack_fp8_linear``."""
    check_weight(weight, scale)
    if min(block) < 1:
        raise ValueError(f"block={block}, expected two positive sizes; MiniMax-M2 uses (128, 128)")
    grid = tuple(-(-size // part) for size, part in zip(weight.shape, block, strict=True))
    schema.expect_shape("scale", scale, grid, f"one scale a block of {list(block)} in weight {list(weight.shape)}")


def check_pairs(block: tuple[int, int]) -> None:
    """Raise ValueError where a scale would begin inside a pair of inputs."""
    if block[1] % 2:
        raise ValueError(f"block={block} has odd columns; expected even ones, products are made two at a time")
