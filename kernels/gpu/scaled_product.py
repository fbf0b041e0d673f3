"""Launches of ``scaled_product.cu``: e4m3 rows times an e4m3 weight in blocks of 128 x 128, on sm_90."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit
from minimax_m2.kernels.gpu.divisor import Divisor, divisor
from minimax_m2.kernels.gpu.launch import multiprocessors

# Channels of a scale, and of a step.
GROUP = 128


class Mode(IntEnum):
    """What a product is of: tokens, gate and up of slots with SwiGLU, act of slots with its weight."""

    DENSE, GATE_UP, DOWN = range(3)


class Tile(NamedTuple):
    """Rows of x and columns of the result that a program, or a pair of them, makes at a time."""

    rows: int
    columns: int


DENSE_TILES = (
    Tile(16, 64), Tile(32, 64), Tile(64, 64), Tile(128, 64), Tile(128, 96), Tile(128, 128), Tile(128, 256),
    Tile(192, 256),
)  # fmt: skip
# Tiles that two programs of a cluster may make, of half the channels each.
HALVED = (Tile(64, 64), Tile(128, 64), Tile(128, 96), Tile(128, 128))
# Tiles that two programs make together.
PAIRED = (Tile(192, 128), Tile(192, 256))
# Programs that one multiprocessor holds: their rings are short.
SHARING = {Tile(16, 64): 2, Tile(32, 64): 2}
# Programs of a cluster, and what the first of them keeps of the others: sums of a row, of so many tiles.
MOST_PARTS, MOST_SUMS, MOST_TILES = 8, 3072, 12

_OUT = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Product(ctypes.Structure):
    """The arguments of the kernel, as its source declares them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "x_scale", "w_scale", "sorted_slots", "block_experts", "num_padded", "ids", "expert_map", "weights",
            "out", "out_scale",
        )),
        *((name, ctypes.c_int) for name in (
            "x_scale_stride", "w_scale_stride", "scale_rows", "weight_rows", "rows", "top_k", "width", "parts",
            "steps", "columns", "num_experts", "num_mapped", "ids_kind", "out_kind", "prefetch", "joined",
        )),
        *((name, Divisor) for name in ("by_parts", "by_columns", "by_top_k")),
    ]  # fmt: skip


class Sorting(NamedTuple):
    """What moe_align gives: slots in the order of their experts, the expert of each block, and the padded count."""

    slots: Tensor
    experts: Tensor
    padded: Tensor


def available(capability: int, compiler: str | None) -> bool:
    """Whether the kernel exists here: sm_90 alone has its instructions, and nvcc makes it on first use."""
    return capability == 90 and compiler is not None


def fits(channels: int, columns: int, block: tuple[int, int]) -> bool:
    """Whether a weight ``[columns, channels]`` can be cut into its tiles: whole groups, whole runs of stores."""
    return block == (GROUP, GROUP) and channels % GROUP == 0 and columns % 16 == 0


def aligned(*tensors: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, as its copies do."""
    return all(x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 for x in tensors)


def countable(*scales: Tensor) -> bool:
    """Whether 31 bits count all scales, as the kernel does."""
    return all((len(x) - 1) * x.stride(0) + x.shape[-1] <= 1 << 31 for x in scales)


def joins(tiles: int, parts: int, columns: int, clusters: Callable[[int], int]) -> bool:
    """Whether the programs that make the parts of a row are a cluster, whose first adds them up.

    columns   that a program keeps sums of: gate's and up's apart
    clusters  how many of so many programs run at once
    """
    if not 1 < parts <= MOST_PARTS or clusters(parts) < 1:
        return False
    turns = -(-tiles // clusters(parts))
    return turns <= MOST_TILES and turns * (parts - 1) * columns <= MOST_SUMS


def even_parts(tiles: int, groups: int, columns: int, places: int, clusters: Callable[[int], int]) -> int:
    """The parts of a row's sums that leave the busiest program the fewest steps; ``places`` programs run alone."""
    best, least = 1, groups * -(-tiles // places)
    for parts in range(2, MOST_PARTS + 1):
        if groups % parts == 0 and joins(tiles, parts, columns, clusters):
            steps = groups // parts * -(-tiles // clusters(parts))
            if steps < least:
                best, least = parts, steps
    return best


@cache
def clusters_of(mode: Mode, parts: int, device: int) -> int:
    """How many clusters of so many programs a GPU holds at once, for tiles of 16 rows."""
    with torch.cuda.device(device):
        return int(toolkit.loaded("scaled_product", "90a").minimax_m2_clusters(int(mode), parts))


def halves(tile: Tile, parts: int, programs: int, places: int) -> bool:
    """Whether two programs that make the parts of a tile add them up themselves, each in half of its columns.

    Each has one tile then, so all of them must run at once.
    """
    return parts == 2 and tile in HALVED and programs <= places


def places_of(tile: Tile, device: torch.device) -> int:
    """Programs of a tile that a GPU holds at once."""
    return multiprocessors(device) * SHARING.get(tile, 1)


def programs_of(tile: Tile, tiles: int, places: int) -> int:
    """Programs that make so many tiles, of which ``places`` run at once: pairs are whole."""
    together = 2 if tile in PAIRED else 1
    return together * min(tiles, places // together)


def clusters_on(mode: Mode, device: torch.device) -> Callable[[int], int]:
    """``clusters_of`` by their programs."""
    return lambda parts: clusters_of(mode, parts, device.index or 0)


def launch(
    mode: Mode, tile: Tile, weight: Tensor, *, x: Tensor, x_scale: Tensor, w_scale: Tensor, out: Tensor, rows: int,
    width: int, prefetch: bool, out_scale: Tensor | None = None, parts: int = 1, top_k: int = 1,
    sorting: Sorting | None = None, ids: Tensor | None = None, expert_map: Tensor | None = None,
    weights: Tensor | None = None, joined: bool = False,
) -> None:  # fmt: skip
    """Launch one product.

    weight    ``[N, K]`` or ``[E, N, K]`` codes, w_scale its scales
    x         ``[rows, K]`` codes: tokens, or slots in the order of ``sorting``; without it each slot is a block of its
              own, and gate and up read its token
    prefetch  the kernel ahead writes nothing that says which tiles there are, so the weight may be read before it ends
    joined    parts are added up in their order, as ``joins`` or ``halves`` allows: ``out`` holds their sum
    """
    slots, experts, padded = sorting or (None, None, None)
    scale_rows, columns = w_scale.shape[-2], -(-width // tile.columns)
    arguments = Product(
        x_scale=x_scale.data_ptr(), w_scale=w_scale.data_ptr(), sorted_slots=_place(slots),
        block_experts=_place(experts), num_padded=_place(padded), ids=_place(ids), expert_map=_place(expert_map),
        weights=_place(weights), out=out.data_ptr(), out_scale=_place(out_scale),
        x_scale_stride=x_scale.stride(0), w_scale_stride=w_scale.stride(-2), scale_rows=scale_rows,
        weight_rows=weight.shape[-2], rows=rows, top_k=top_k, width=width, parts=parts,
        steps=weight.shape[-1] // GROUP // parts, columns=columns,
        num_experts=weight.shape[0] if weight.dim() == 3 else 1,
        num_mapped=0 if expert_map is None else expert_map.numel(),
        ids_kind=2 if weights is None else int(ids is not None and ids.dtype == torch.int64),
        out_kind=_OUT.get(out.dtype, 0), prefetch=prefetch, joined=joined, by_parts=divisor(parts),
        by_columns=divisor(columns), by_top_k=divisor(top_k),
    )  # fmt: skip
    blocks = -(-rows // tile.rows) if mode is Mode.DENSE else rows if experts is None else experts.numel()
    tiles = blocks * columns
    programs = programs_of(tile, tiles * parts, places_of(tile, x.device))
    if joined and tile not in HALVED:
        programs = parts * min(tiles, clusters_of(mode, parts, x.device.index or 0))
    library = toolkit.loaded("scaled_product", "90a")
    wrong = library.minimax_m2_scaled_product(
        int(mode), tile.rows, tile.columns, *_rows(x), *_rows(weight.view(-1, weight.shape[-1])),
        ctypes.byref(arguments), programs,
        ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
    )  # fmt: skip
    toolkit.demand_launched(library, wrong, f"scaled_product {mode.name} {tile}")


def _rows(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_longlong, ctypes.c_longlong]:
    """Codes, how many rows there are, and how far apart they begin."""
    return ctypes.c_void_p(x.data_ptr()), ctypes.c_longlong(x.shape[0]), ctypes.c_longlong(x.stride(0))


def _place(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
