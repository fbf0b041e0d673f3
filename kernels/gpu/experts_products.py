"""Gate and up, and down, of ``experts`` by the kernel of sm_90: two products whose ring of weights never runs dry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.kernels.gpu.block_quant import quantise
from minimax_m2.kernels.gpu.gathered_rows import gathered_rows
from minimax_m2.kernels.gpu.moe_align import moe_align
from minimax_m2.kernels.gpu.scaled_product import (
    GROUP,
    Mode,
    Sorting,
    Tile,
    aligned,
    available,
    clusters_on,
    even_parts,
    fits,
    launch,
    places_of,
)
from minimax_m2.kernels.schema.block_quant import allocated

# Up to so many slots each is a block of its own: sorting costs more than reading an expert twice.
UNSORTED = 48
# The most slots an expert, on average, for blocks of so many: few experts then have more than one block. With still
# more they are of 128 again.
BLOCKS = {16: 8, 32: 12, 64: 40, 128: 120, 192: 160}
# In blocks of more rows, slots are many more than tokens are groups of: codes are made before they are gathered.
FEW_ROWS = 16
# Rows of a block by path; 1 where nothing is sorted.
PRODUCTS = {f"products of {rows}": rows for rows in (1, 16, 32, 64, 128, 192)}


def by_products(
    hidden: int, width: int, block: tuple[int, int], *, capability: int, compiler: str | None, scaled: bool,
    aligned: bool,
) -> bool:  # fmt: skip
    """Whether e4m3 experts can take the kernel of sm_90."""
    whole = fits(hidden, width, block) and fits(width, hidden, block)
    return scaled and aligned and whole and available(capability, compiler)


def products_of(num_slots: int, num_experts: int) -> tuple[str, ...]:
    """The paths of this kernel, the best first. Without sorting every slot reads an expert for itself."""
    best = rows_of_block(num_slots, num_experts)
    return tuple(
        path for path, rows in sorted(PRODUCTS.items(), key=lambda item: item[1] != best)
        if rows > 1 or num_slots <= 4 * UNSORTED
    )  # fmt: skip


def rows_of_block(num_slots: int, num_experts: int) -> int:
    """Slots that share an expert's tile: 1 where nothing is sorted."""
    if num_slots <= UNSORTED:
        return 1
    return next((rows for rows, most in BLOCKS.items() if num_slots <= most * num_experts), 128)


def rows_begin_evenly(x: Tensor, packed: list[Tensor], coded: bool) -> bool:
    """Whether the kernel's copies of 16 bytes fit what the caller gave."""
    return aligned(*packed[:2], *([x] if coded else []))


def quantised_once(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of x and the scales of its groups."""
    q, scale = allocated(*x.shape, group=GROUP, dtype=dtype, device=x.device)
    # Ids, which the next launch reads before it waits, are written by then.
    quantise(x, GROUP, False, q, scale, settled=True)
    return q, scale


def parts_of(mode: Mode, tile: Tile, tiles: int, groups: int, device: torch.device) -> int:
    """The parts that the sums of a slot alone are made in."""
    columns = 2 * tile.columns if mode is Mode.GATE_UP else tile.columns
    return even_parts(tiles, groups, columns, places_of(tile, device), clusters_on(mode, device))


def launch_products(
    x: Tensor, packed: list[Tensor], weights: Tensor | None, ids: Tensor, expert_map: Tensor | None,
    x_scale: Tensor | None, y: Tensor, rows: int,
) -> None:  # fmt: skip
    """Write the weighted row of every slot, in blocks of ``rows`` slots of one expert."""
    w13, w2, w13_scale, w2_scale, extent = packed
    _, H, I, _, _ = extent.shape
    num_slots, num_experts, top_k = ids.numel(), w13.shape[0], ids.shape[1]
    sorting, quantised, places = None, x_scale is None, num_slots
    if rows > 1:
        # Words of pack_routing hold the id in their upper half.
        plain_ids = (ids >> 16).contiguous() if weights is None else ids
        if quantised and rows > FEW_ROWS:
            # Once a token, not once a slot.
            x, x_scale = quantised_once(x, w13.dtype)
        sorting = Sorting(*moe_align(plain_ids, num_experts=num_experts, block=rows, expert_map=expert_map)[:3])
        x, x_scale = gathered_rows(x, x_scale, sorting.slots, num_slots, top_k, GROUP)
        places = len(sorting.slots)
    elif x_scale is None:
        x, x_scale = quantised_once(x, w13.dtype)

    act, act_scale = allocated(places, I, group=GROUP, dtype=w13.dtype, device=x.device)
    gate, down = Tile(max(rows, 16), 128), Tile(max(rows, 16), 256)
    gate_parts, down_parts = (
        parts_of(mode, tile, num_slots * -(-columns // tile.columns), channels // GROUP, x.device) if rows == 1 else 1
        for mode, tile, columns, channels in ((Mode.GATE_UP, gate, I, H), (Mode.DOWN, down, H, I))
    )
    shared: dict[str, Any] = {
        "rows": num_slots,
        "sorting": sorting,
        "ids": ids,
        "expert_map": expert_map,
        "weights": weights,
    }
    # Ids and sorted slots are older than the launch just ahead, which began after they were written.
    launch(
        Mode.GATE_UP, gate, w13, x=x, x_scale=x_scale, w_scale=w13_scale, out=act, out_scale=act_scale,
        width=I, top_k=top_k, prefetch=quantised or rows > 1, parts=gate_parts,
        joined=gate_parts > 1, **shared,
    )  # fmt: skip
    launch(
        Mode.DOWN, down, w2, x=act, x_scale=act_scale, w_scale=w2_scale, out=y, width=H, prefetch=True,
        parts=down_parts, joined=down_parts > 1, **shared,
    )  # fmt: skip
