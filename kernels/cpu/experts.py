"""Run a mixture's experts on the CPU: gate and up, SwiGLU, down, weighted sum, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.cpu.column_packing import (
    COLUMNS,
    blocks,
    channel_scales,
    every_row,
    rows_of,
    scale_blocks,
    scale_of,
    starts,
)
from minimax_m2.kernels.schema import experts as experts_schema

extension.load("experts")


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """Where the kernel rounds; exp is good to 1.1 ulp, silu to 3.5.

    act has the model's dtype; with int8 weights it stays float32 until it is quantised, as x is, a scale a row.
    """
    sites = {"gate_up": None, "silu": None, "weighted": None, "combine": "float32", "exp_ulps": 2.0}
    return sites | {"activation": "int8", "act": "float32"} if case["quant"] == "int8" else sites


class PackedExperts(NamedTuple):
    """Weights in blocks of 64 output columns, the input dimension outermost, so that a block is read as one stream.

    n inputs of a column stand side by side, as the dot product instruction wants them: 2 of bfloat16 and e4m3, 4 of
    int8.
    """

    w13: Tensor  # [E, ceil(I/32), ceil(H/n), 64, n] or, float32 and float16, [E, ceil(I/32), H, 64]; gate 32, up 32
    w2: Tensor  # [E, ceil(H/64), ceil(I/n), 64, n] or [E, ceil(H/64), I, 64]
    w13_scale: Tensor  # [E, ceil(I/32), ceil(H/columns), 64 or 2] float32, a scale a column or a half, or [0]
    w2_scale: Tensor  # [E, ceil(H/64), ceil(I/columns), 64 or 2] float32, or [0]
    extent: Tensor  # [0, H, I, columns]: holds nothing, its shape keeps the sizes that padding hides
    w13_start: Tensor  # [E, ceil(I/32), 64] int32 of int8 weights: -128 times a column's sum, or [0]
    w2_start: Tensor  # [E, ceil(H/64), 64] int32, or [0]


def pack_experts(
    w13: Tensor,
    w2: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> PackedExperts:
    """Lay the weights out once for every later call.

    w13        [E, 2*I, H], rows of w1 (gate), then of w3 (up); w2 [E, H, I]
               float32, bfloat16, float16, e4m3 or int8 with scales
    w13_scale  [E, ceil(2*I/rows), ceil(H/columns)] float32; w2_scale [E, ceil(H/rows), ceil(I/columns)];
               of int8 one a row, [E, 2*I, 1] and [E, H, 1]
    block      (rows, columns), (128, 128) unless given; rows need not divide I, columns must be even; None for int8

    Raises ValueError or TypeError for shapes, dtypes and scales outside the above.
    """
    rows, columns = experts_schema.block_of(w13, w2, block)
    experts_schema.check_pack(w13, w2, w13_scale=w13_scale, w2_scale=w2_scale, block=(rows, columns))

    hidden, width = w2.shape[1:]
    order13, order2 = _gate_beside_up(width), every_row(hidden)
    laid13, laid2, none = blocks(w13, order13), blocks(w2, order2), torch.empty(0)
    extent, start = torch.empty(0, hidden, width, columns), torch.empty(0, dtype=torch.int32)
    if w13_scale is None or w2_scale is None:
        return PackedExperts(laid13, laid2, none, none, extent, start, start)
    if w13.dtype == torch.int8:
        scales = channel_scales(w13_scale, order13), channel_scales(w2_scale, order2)
        return PackedExperts(laid13, laid2, *scales, extent, starts(laid13), starts(laid2))
    scales = scale_blocks(w13_scale, order13 // rows), scale_blocks(w2_scale, order2 // rows)
    return PackedExperts(laid13, laid2, *scales, extent, start, start)


def unpack_experts(packed: PackedExperts, *, block: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
    """Give ``pack_experts``' arguments back, bit for bit: w13, w2, and both scales where there are any.

    block  as it was packed with; only its rows matter
    """
    _, hidden, width, _ = packed.extent.shape
    order13, order2 = _gate_beside_up(width), every_row(hidden)
    weights = rows_of(packed.w13, order13, inputs=hidden), rows_of(packed.w2, order2, inputs=width)
    if not packed.w13_scale.numel():
        return weights
    rows, _ = experts_schema.block_of(*weights, block)
    return *weights, scale_of(packed.w13_scale, order13 // rows), scale_of(packed.w2_scale, order2 // rows)


def _gate_beside_up(width: int) -> Tensor:
    """Rows of w13 in blocks of 64 columns: 32 of gate, then the same 32 of up; the last of each fills its half."""
    column = torch.arange(-(-width // 32) * COLUMNS)
    gate = (column // COLUMNS * 32 + column % 32).clamp(max=width - 1)
    return torch.where(column % COLUMNS < 32, gate, gate + width)


def experts(
    x: Tensor,
    packed: PackedExperts,
    weights: Tensor | None,
    ids: Tensor,
    *,
    expert_map: Tensor | None = None,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum each token's experts: ``y[t] = sum_k weights[t, k] * swiglu(x[t] @ w13[e]^T) @ w2[e]^T, e = ids[t, k]``.

    x           [T, H] of the weights' dtype, or any float where those are e4m3 or int8; e4m3 with x_scale
    weights     [T, K] float32, or None where ids are pack_routing's words
    ids         [T, K] int32 or int64; -1, and ids that expert_map sends to -1, add nothing
    expert_map  [experts of all ranks] int32 or None
    x_scale     [T, ceil(H/columns)] float32
    returns     [T, H] out_dtype, else x's dtype (float32 for e4m3); rows without experts exactly 0

    Gate, up and sums over experts stay float32; ``silu(gate) * up`` is rounded to the model's dtype: x's, or for an
    e4m3 x out_dtype. With int8 weights it stays float32 until it is quantised as x is, to int8 with one scale a row,
    ``max(absmax, 1e-10) / 127``; products of codes are exact sums, scaled in float32. A token's result has the same
    bits whatever shares its batch, and with any number of threads.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and ValueError for an id outside
    -1..E-1, before or after expert_map.
    """
    dtype = out_dtype or (torch.float32 if x_scale is not None else x.dtype)
    model_dtype = x.dtype if x_scale is None else dtype
    experts_schema.check(x, packed, weights, ids, expert_map=expert_map, x_scale=x_scale, model_dtype=model_dtype)

    out = torch.empty(x.shape, dtype=dtype)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.experts(x, list(packed), weights, ids, expert_map, x_scale, out)
    return out


def experts_out(
    x: Tensor,
    packed: PackedExperts,
    weights: Tensor | None,
    ids: Tensor,
    out: Tensor,
    *,
    expert_map: Tensor | None = None,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> None:
    """Do what ``experts`` does, into ``out``, contiguous ``[T, H]``."""
    dtype = out_dtype or (torch.float32 if x_scale is not None else x.dtype)
    model_dtype = x.dtype if x_scale is None else dtype
    experts_schema.check(x, packed, weights, ids, expert_map=expert_map, x_scale=x_scale, model_dtype=model_dtype)
    experts_schema.check_output(out, shape=(x.shape[0], x.shape[1]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.experts(x, list(packed), weights, ids, expert_map, x_scale, out)
