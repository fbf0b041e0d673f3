"""Run a mixture's experts on a GPU: gate and up with SwiGLU, down with its weight, the sum over choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.gpu import toolkit, tuned
from minimax_m2.kernels.gpu.block_quant import block_quant
from minimax_m2.kernels.gpu.experts_halves import by_halves, halves_win, launch_halves
from minimax_m2.kernels.gpu.experts_products import (
    PRODUCTS,
    UNSORTED,
    by_products,
    launch_products,
    products_of,
    rows_begin_evenly,
)
from minimax_m2.kernels.gpu.experts_rows import down_rows_kernel, gate_up_rows_kernel
from minimax_m2.kernels.gpu.experts_tiles import down_kernel, gate_up_kernel, sum_choices_kernel
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    on_device_of,
    registered,
    starts_early,
)
from minimax_m2.kernels.gpu.moe_align import moe_align
from minimax_m2.kernels.gpu.scaled_rows import fits, steps_of
from minimax_m2.kernels.gpu.scaled_tile import evenly
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import experts as experts_schema

# Up to so many slots each is a program's whole row tile: sorting them costs more than reading an expert twice.
UNSORTED_SLOTS = 32
# Up to so many, e4m3 rows are multiplied without tensor cores: one slot would leave 15 of a tile's 16 rows empty.
ROW_SLOTS = 32
# Rows of the weight that a program reads, of gate and of up each, and of down.
GATE_ROWS, DOWN_ROWS = 4, 16
# Columns of a program that sums: few where tokens are few, a thread's 16 bytes of a row where they are many.
FEW_COLUMNS, MANY_COLUMNS, MANY_TOKENS = 256, 1024, 512
# The code paths beside the products of sm_90.
ROWS, HALVES, TILES = "rows", "halves", "tiles"
# Cases that no kernel runs.
refused = {"quant": {"int8": "int8 weights have no kernel on a GPU"}}


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """e4m3 weights meet e4m3 activations, and act stays float32 until it is quantised; each slot's row is stored."""
    # An e4m3 x does not tell the model's dtype: then it is that of the result.
    stored = "float32" if case["quant"] == "both" and case["out"] != case["dtype"] else "dtype"
    sites = {"gate_up": None, "silu": None, "weighted": stored, "combine": "float32"}
    if case["quant"] == "none":
        return sites | {"tensor_core": None if case["dtype"] == "float32" else "bfloat16"}
    return sites | {"activation": "e4m3", "reciprocal": "float32", "act": "float32", "tensor_core": "e4m3"}


class PackedExperts(NamedTuple):
    """Weights in the checkpoint's layout."""

    w13: Tensor  # [E, 2*I, H], rows of w1 (gate), then of w3 (up); e4m3 or the model's dtype
    w2: Tensor  # [E, H, I]
    w13_scale: Tensor  # [E, ceil(2*I/rows), ceil(H/columns)] float32, or [0]
    w2_scale: Tensor  # [E, ceil(H/rows), ceil(I/columns)] float32, or [0]
    extent: Tensor  # [0, H, I, columns, rows]: holds nothing, its shape keeps the sizes


class Tiling(NamedTuple):
    """Slots and columns of a program of each product, whether slots are sorted, and whether act is stored as codes."""

    slots: int
    gate_columns: int
    down_columns: int
    sorted: bool
    coded: bool
    warps: int
    stages: int


def tiling(num_slots: int, num_experts: int, hardware: bool, *, halves: bool) -> Tiling:
    """Narrow tiles where the weights' bytes set the time and many programs must stream them; wide ones else.

    Without e4m3 tensor cores (``hardware``) codes are decoded in registers, which leaves room for 32 rows.
    halves   weights of 16 bits, whose steps are twice as large: fewer columns, more of them on their way
    """
    if num_slots <= UNSORTED_SLOTS:
        return Tiling(16, 32, 32, False, False, 4, 4)
    per_expert = num_slots / num_experts
    slots = 16 if per_expert <= 12 else 32 if per_expert <= 24 or not hardware else 64 if per_expert <= 192 else 128
    if halves and slots == 16:
        return Tiling(slots, 64, 64, True, True, 4, 5)
    if halves and slots == 64:
        return Tiling(slots, 64, 128, True, True, 4, 4)
    return Tiling(slots, 128, 128, True, True, 4 if slots == 16 and hardware else 8, 3)


def by_rows(num_slots: int, hidden: int, width: int, columns: int, *, scaled: bool) -> bool:
    """Whether each slot's rows of e4m3 are multiplied without tensor cores."""
    return scaled and num_slots <= ROW_SLOTS and fits(hidden, columns) and fits(width, columns)


def paths(
    num_slots: int, num_experts: int, hidden: int, width: int, block: tuple[int, int], *, capability: int,
    compiler: str | None, scaled: bool, aligned: bool, halves: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """The code paths that can run, the one that is taken first; a tuned choice is one of the others."""
    if num_slots > UNSORTED_SLOTS and by_halves(
        hidden, width, capability=capability, compiler=compiler, halves=halves, aligned=aligned
    ):
        return (HALVES, TILES) if halves_win(num_slots, num_experts, width) else (TILES, HALVES)
    products: tuple[str, ...] = ()
    if by_products(hidden, width, block, capability=capability, compiler=compiler, scaled=scaled, aligned=aligned):
        products = products_of(num_slots, num_experts)
    by_row = (ROWS,) if by_rows(num_slots, hidden, width, block[1], scaled=scaled) else ()
    return (*products, *by_row, TILES)


def bucket(num_slots: int, num_experts: int, *, halves: bool = False) -> str:
    """The calls that share a tuned choice: few slots by their number, more by how many an expert has.

    halves  weights of 16 bits, which have other paths
    """
    kind = "16-bit weights, " if halves else ""
    if num_slots <= UNSORTED:
        return f"{kind}slots <= {power_of_two(num_slots)}"
    return f"{kind}slots of an expert <= {power_of_two(triton.cdiv(num_slots, num_experts))}"


def pack_experts(
    w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> PackedExperts:  # fmt: skip
    """Keep the checkpoint's layout, contiguous.

    w13        [E, 2*I, H], rows of w1 (gate), then of w3 (up); w2 [E, H, I]
               float32, bfloat16, float16, or e4m3 with scales
    w13_scale  [E, ceil(2*I/rows), ceil(H/columns)] float32; w2_scale [E, ceil(H/rows), ceil(I/columns)]
    block      (rows, columns), (128, 128) unless given; rows need not divide I

    Raises ValueError or TypeError for shapes, dtypes and scales outside the above.
    """
    rows, columns = block or (128, 128)
    experts_schema.check_pack(
        w13, w2, w13_scale=w13_scale, w2_scale=w2_scale, block=(rows, columns), quantised=(experts_schema.E4M3,)
    )
    none = torch.empty(0, device=w13.device)
    s13, s2 = (none if scale is None else scale.contiguous() for scale in (w13_scale, w2_scale))
    extent = torch.empty(0, *w2.shape[1:], columns, rows, device=w13.device)
    return PackedExperts(w13.contiguous(), w2.contiguous(), s13, s2, extent)


def _launch_rows(
    x: Tensor, packed: list[Tensor], weights: Tensor | None, ids: Tensor, expert_map: Tensor | None,
    x_scale: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Write the weighted row of every slot, each slot for itself."""
    w13, w2, w13_scale, w2_scale, extent = packed
    _, H, I, columns, rows = extent.shape
    num_slots, mapped = ids.numel(), 0 if expert_map is None else expert_map.numel()
    arch = capability(x)
    act = torch.empty((num_slots, I), dtype=torch.float32, device=x.device)
    coded = x_scale is not None
    which = {"HAS_MAP": expert_map is not None, "WORDS": weights is None, "HARDWARE": converts_e4m3(arch)}
    which |= starts_early(arch)
    groups, block, steps = steps_of(H, columns)
    gate_up_rows_kernel[(triton.cdiv(I, GATE_ROWS), num_slots)](
        x.view(torch.uint8) if coded else x, x_scale, w13.view(torch.uint8), w13_scale, ids, expert_map, act,
        x.stride(0), num_slots, w13.shape[0], mapped, ids.shape[1], H, I, rows, columns, w13_scale.shape[1],
        w13_scale.shape[2], COLUMNS=GATE_ROWS, GROUPS=groups, BLOCK=block, STEPS=steps,
        EVEN=steps * groups * columns == H and block == columns, CODED=coded, **which, num_warps=4,
    )  # fmt: skip
    groups, block, steps = steps_of(I, columns)
    down_rows_kernel[(triton.cdiv(H, DOWN_ROWS), num_slots)](
        act, w2.view(torch.uint8), w2_scale, weights, ids, expert_map, y, num_slots, w13.shape[0], mapped, H, I, rows,
        columns, w2_scale.shape[1], w2_scale.shape[2], COLUMNS=DOWN_ROWS, GROUPS=groups, BLOCK=block, STEPS=steps,
        EVEN=steps * groups * columns == I and block == columns, **which, num_warps=4,
    )  # fmt: skip


def _launch_tiles(
    x: Tensor, packed: list[Tensor], weights: Tensor | None, ids: Tensor, expert_map: Tensor | None,
    x_scale: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Write the weighted row of every slot, in tiles of slots that share an expert where sorting them is worth it."""
    w13, w2, w13_scale, w2_scale, extent = packed
    _, H, I, columns, rows = extent.shape
    num_experts, num_slots, top_k = w13.shape[0], ids.numel(), ids.shape[1]
    scaled = w13_scale.numel() > 0
    arch = capability(x)
    hardware = converts_e4m3(arch)
    cut = tiling(num_slots, num_experts, hardware, halves=w13.element_size() == 2)
    if scaled and x_scale is None and cut.sorted:
        x, x_scale = block_quant(x, group=columns)
    if cut.sorted:
        # Words of pack_routing hold the id in their upper half.
        plain_ids = (ids >> 16).contiguous() if weights is None else ids
        sorted_slots, block_experts, _, _ = moe_align(
            plain_ids, num_experts=num_experts, block=cut.slots, expert_map=expert_map
        )
        blocks = block_experts.numel()
    else:
        sorted_slots, block_experts, blocks = None, None, num_slots

    coded = scaled and cut.coded
    # Channels of a step: a block of scales, or what a plain product adds at once.
    width = columns if scaled else 64
    block = max(32 if scaled else 16, power_of_two(width))
    act_dtype = torch.uint8 if coded else torch.float32 if scaled else y.dtype
    act = torch.empty((num_slots, I), dtype=act_dtype, device=x.device)
    groups = triton.cdiv(I, columns)
    act_scale = torch.empty((num_slots, groups), dtype=torch.float32, device=x.device) if coded else None
    mapped = 0 if expert_map is None else expert_map.numel()
    gate_columns = max(16, power_of_two(columns)) if coded else cut.gate_columns
    # The tile of a coded act is one group wide, which may be no power of two.
    gate_step = columns if coded else gate_columns
    which = {"SORTED": cut.sorted, "HAS_MAP": expert_map is not None, "WORDS": weights is None}
    tile = {"ROWS": cut.slots, "BLOCK": block, "SCALED": scaled, "HARDWARE": hardware}
    options = {"num_warps": cut.warps, "num_stages": cut.stages, **starts_early(arch)}
    codes = torch.uint8
    gate_up_kernel[(triton.cdiv(I, gate_step), blocks)](
        x.view(codes) if x_scale is not None else x, x_scale, w13.view(codes) if scaled else w13, w13_scale, ids,
        expert_map, sorted_slots, block_experts, act, act_scale, x.stride(0), num_slots, num_experts, mapped, top_k,
        H, I, rows, width, w13_scale.shape[1] if scaled else 0, triton.cdiv(H, columns), groups,
        STEPS=triton.cdiv(H, width), COLUMNS=gate_columns, CODED=x_scale is not None, ACT_CODED=coded,
        EVEN=evenly(H, width), FULL=I % gate_step == 0 and gate_step == gate_columns,
        ONE_SCALE=rows % gate_step == 0 and I % rows == 0 and gate_step == gate_columns, **which, **tile, **options,
    )  # fmt: skip
    down_kernel[(triton.cdiv(H, cut.down_columns), blocks)](
        act, act_scale, w2.view(codes) if scaled else w2, w2_scale, weights, ids, expert_map, sorted_slots,
        block_experts, y, num_slots, num_experts, mapped, H, I, rows, width, w2_scale.shape[1] if scaled else 0,
        STEPS=triton.cdiv(I, width), COLUMNS=cut.down_columns, CODED=coded, EVEN=evenly(I, width),
        FULL=H % cut.down_columns == 0, ONE_SCALE=rows % cut.down_columns == 0, **which, **tile, **options,
    )  # fmt: skip


def _launch(
    x: Tensor, packed: list[Tensor], weights: Tensor | None, ids: Tensor, expert_map: Tensor | None,
    x_scale: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    w13, _, w13_scale, _, extent = packed
    _, H, I, columns, block_rows = extent.shape
    num_slots, top_k = ids.numel(), ids.shape[1]
    mapped = 0 if expert_map is None else expert_map.numel()
    y = torch.empty((num_slots, H), dtype=out.dtype if x_scale is not None else x.dtype, device=x.device)
    scaled, arch = w13_scale.numel() > 0, capability(x)
    halves = w13.element_size() == 2
    able = paths(
        num_slots, w13.shape[0], H, I, (block_rows, columns), capability=arch, compiler=toolkit.compiler(),
        scaled=scaled, aligned=x.is_cuda and rows_begin_evenly(x, packed, x_scale is not None), halves=halves,
    )  # fmt: skip
    path = tuned.chosen("experts", bucket(num_slots, w13.shape[0], halves=halves), able, x)
    with on_device_of(x):
        if path == ROWS:
            _launch_rows(x, packed, weights, ids, expert_map, x_scale, y)
        elif path == TILES:
            _launch_tiles(x, packed, weights, ids, expert_map, x_scale, y)
        elif path == HALVES:
            launch_halves(x, packed, weights, ids, expert_map, y)
        else:
            launch_products(x, packed, weights, ids, expert_map, x_scale, y, rows=PRODUCTS[path])
        summed = min(MANY_COLUMNS if ids.shape[0] >= MANY_TOKENS else FEW_COLUMNS, power_of_two(H))
        programs = triton.cdiv(H, summed)
        sum_choices_kernel[(programs, ids.shape[0])](
            y, ids, expert_map, out, num_slots, w13.shape[0], mapped, top_k, H, CHOICES=top_k, COLUMNS=summed,
            HAS_MAP=expert_map is not None, WORDS=weights is None, num_warps=4,
            **chained(arch, programs * ids.shape[0] * 4, tokens=ids.shape[0]),
        )  # fmt: skip


_call = registered("experts", _launch)


def experts(
    x: Tensor, packed: PackedExperts, weights: Tensor | None, ids: Tensor, *, expert_map: Tensor | None = None,
    x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Sum each token's experts: ``y[t] = sum_k weights[t, k] * swiglu(x[t] @ w13[e]^T) @ w2[e]^T, e = ids[t, k]``.

    x           [T, H] of the weights' dtype, or any float where those are e4m3; e4m3 with x_scale
    weights     [T, K] float32, or None where ids are pack_routing's words
    ids         [T, K] int32 or int64; -1, ids outside 0..E-1 and ids that expert_map sends to -1 add nothing
    expert_map  [experts of all ranks] int32 or None
    x_scale     [T, ceil(H/columns)] float32
    returns     [T, H] out_dtype, else x's dtype (float32 for e4m3); rows without experts exactly 0

    e4m3 weights meet x and act quantised as block_quant does, in groups of the block's columns. Each choice's weighted
    row is stored in the model's dtype, x's or for an e4m3 x out_dtype; the sum over choices is float32, in their order.

    Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
    """
    dtype = _checked(x, packed, weights, ids, expert_map=expert_map, x_scale=x_scale, out_dtype=out_dtype)

    out = torch.empty(x.shape, dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, list(packed), weights, ids, expert_map, x_scale, out)
    return out


def experts_out(
    x: Tensor, packed: PackedExperts, weights: Tensor | None, ids: Tensor, out: Tensor, *,
    expert_map: Tensor | None = None, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Do what ``experts`` does, into ``out``, contiguous ``[T, H]``."""
    dtype = _checked(x, packed, weights, ids, expert_map=expert_map, x_scale=x_scale, out_dtype=out_dtype)
    experts_schema.check_output(out, shape=(x.shape[0], x.shape[1]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, list(packed), weights, ids, expert_map, x_scale, out)


def _checked(
    x: Tensor, packed: PackedExperts, weights: Tensor | None, ids: Tensor, *, expert_map: Tensor | None,
    x_scale: Tensor | None, out_dtype: torch.dtype | None,
) -> torch.dtype:  # fmt: skip
    """Check what the host knows; return the dtype of the result."""
    dtype = out_dtype or (torch.float32 if x_scale is not None else x.dtype)
    model_dtype = x.dtype if x_scale is None else dtype
    experts_schema.check(x, packed, weights, ids, expert_map=expert_map, x_scale=x_scale, model_dtype=model_dtype)
    schema.expect_dtype("out_dtype", torch.empty(0, dtype=dtype), schema.FLOATS)
    return dtype
