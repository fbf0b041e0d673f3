"""A dense layer whose weight is e4m3 with one scale a block, on a GPU: activations are quantised too (W8A8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu import scaled_product, toolkit, tuned
from minimax_m2.kernels.gpu.block_quant import quantise
from minimax_m2.kernels.gpu.fp8_linear_row import fp8_linear_row_kernel
from minimax_m2.kernels.gpu.launch import (
    capability,
    converts_e4m3,
    let_next_start,
    on_device_of,
    overlaps,
    registered,
    wait_for_predecessor,
)
from minimax_m2.kernels.gpu.parts import add_parts, part_sums, parts_of
from minimax_m2.kernels.gpu.scaled_rows import fits, steps_of
from minimax_m2.kernels.gpu.scaled_tile import channels, evenly, factor, scaled, weight_tile
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import fp8_linear as fp8_linear_schema
from minimax_m2.kernels.schema import linear as linear_schema
from minimax_m2.kernels.schema.block_quant import allocated

contract = {"activation": "e4m3", "reciprocal": "float32", "tensor_core": "e4m3"}

# Rows of the weight that a program multiplies for a single token, without tensor cores.
ROW_COLUMNS = 4
# The code paths beside the products of sm_90.
ROW, TILES = "row", "tiles"
# Programs of the kernel of sm_90 that keep a GPU's memory or tensor cores busy, and its multiprocessors.
BUSY, PLACES = 96, 132
# Clusters of so many programs, two a multiprocessor, that an H200 holds at once: its multiprocessors lie in groups.
CLUSTERS = {2: 132, 3: 79, 4: 62, 5: 47, 6: 39, 7: 32, 8: 30}
# So many columns are read as fast by programs of 64 rows, which multiply ahead, as by twice as many of 32.
MANY_COLUMNS = 4096
# The widest tile of a program, a pair's taller one, the time that this takes beside it, and tokens from which on.
WIDE, TALL, TALL_TURN, MANY = scaled_product.Tile(128, 256), scaled_product.Tile(192, 256), 0.66, 1024


class PackedFp8Linear(NamedTuple):
    """A weight in the checkpoint's layout."""

    weight: Tensor  # [N, H] e4m3
    scale: Tensor  # [ceil(N/rows), ceil(H/columns)] float32
    block: Tensor  # [2] int64 on the host: rows, columns


class Tiling(NamedTuple):
    """Tokens and output columns of a program, its warps and the loads in flight."""

    tokens: int
    columns: int
    warps: int
    stages: int


def tiling(num_tokens: int, hardware: bool) -> Tiling:
    """Narrow tiles where the weight's bytes set the time and many programs must stream them; wide ones else.

    Without e4m3 tensor cores (``hardware``) codes are decoded in registers, which leaves room for 32 rows.
    """
    if num_tokens <= 16:
        return Tiling(16, 64, 4, 4)
    if num_tokens <= 32 or not hardware:
        return Tiling(32, 64, 4, 4)
    return Tiling(64, 128, 4, 3 if num_tokens <= 64 else 4)


def by_product(channels: int, columns: int, block: tuple[int, int], *, capability: int, compiler: str | None,
               aligned: bool) -> bool:  # fmt: skip
    """Whether tokens take the kernel of sm_90."""
    return scaled_product.available(capability, compiler) and scaled_product.fits(channels, columns, block) and aligned


def _turns(num_tokens: int, columns: int, tile: scaled_product.Tile, places: int) -> int:
    """Tiles that the busiest place makes one after the other."""
    return triton.cdiv(triton.cdiv(num_tokens, tile.rows) * triton.cdiv(columns, tile.columns), places)


def product_cut(num_tokens: int, columns: int, groups: int) -> tuple[scaled_product.Tile, int]:
    """The widest tile that leaves few multiprocessors idle, and the parts of its sum where even narrow ones are few.

    Many tokens take a pair's taller tile where its turns are shorter in all; a single turn would leave pairs idle. A
    single token takes the most parts that clusters add up, all at once on an H200; others may have fewer parts.
    """
    turns = _turns(num_tokens, columns, TALL, PLACES // 2)
    if num_tokens >= MANY and turns > 1 and turns * TALL_TURN < _turns(num_tokens, columns, WIDE, PLACES):
        return TALL, 1
    for width, parts in ((256, 1), (128, 1), (96, 2)) if num_tokens > 64 else ():
        tile = scaled_product.Tile(128, width)
        programs = triton.cdiv(num_tokens, tile.rows) * triton.cdiv(columns, tile.columns) * parts
        if programs >= BUSY and (parts == 1 or (programs <= PLACES and groups % parts == 0)):
            return tile, parts
    rows = next((rows for rows in (16, 32, 64) if num_tokens <= rows), 128)
    tile = scaled_product.Tile(64 if rows == 32 and columns >= MANY_COLUMNS else rows, 64)
    tiles = triton.cdiv(num_tokens, tile.rows) * triton.cdiv(columns, tile.columns)
    if num_tokens == 1:
        joined = (parts for parts, held in CLUSTERS.items() if tiles <= held and groups % parts == 0)
        return tile, max(joined, default=1)
    most = BUSY * scaled_product.SHARING.get(tile, 1) // tiles
    return tile, max((parts for parts in range(1, min(most, groups) + 1) if groups % parts == 0), default=1)


def products_of(num_tokens: int, columns: int, groups: int) -> dict[str, tuple[scaled_product.Tile, int]]:
    """The ways to cut a product of sm_90 by the name of their path, the best first."""
    best = product_cut(num_tokens, columns, groups)
    cuts = [best] + [
        (tile, parts)
        for tile in scaled_product.DENSE_TILES if tile.rows < 4 * max(num_tokens, 8)
        for parts in ((1,) if num_tokens > 256 or tile in scaled_product.PAIRED else (1, 2, 4)) if groups % parts == 0
    ]  # fmt: skip
    return {f"products of {tile.rows} x {tile.columns} in {parts}": (tile, parts) for tile, parts in cuts}


def paths(
    num_tokens: int, columns: int, hidden: int, block: tuple[int, int], *, capability: int, compiler: str | None,
    aligned: bool,
) -> tuple[str, ...]:  # fmt: skip
    """The code paths that can run, the one that is taken first; a tuned choice is one of the others."""
    row = (ROW,) if num_tokens == 1 and fits(hidden, block[1]) else ()
    products: tuple[str, ...] = ()
    if by_product(hidden, columns, block, capability=capability, compiler=compiler, aligned=aligned):
        products = tuple(products_of(num_tokens, columns, hidden // block[1]))
    return (*products, *row, TILES)


def bucket(num_tokens: int, columns: int, hidden: int) -> str:
    """The sizes that share a tuned choice."""
    return f"N={columns} H={hidden} T <= {power_of_two(num_tokens)}"


@triton.jit
def fp8_linear_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, out_ptr, x_stride, x_scale_stride, weight_stride, scale_stride,
    T, N, H, rows, columns, STEPS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    EVEN: tl.constexpr, FULL: tl.constexpr, ONE_SCALE: tl.constexpr, HARDWARE: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """One part of the sum over groups; codes multiply exactly, both scales meet the float32 sum of a group."""
    wait_for_predecessor(EARLY)
    let_next_start(EARLY and FOLLOWED)
    lane = tl.arange(0, COLUMNS)
    first = tl.program_id(0).to(tl.int64) * COLUMNS
    n = first + lane
    t = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    token_ok, column_ok = t < T, n < N
    weight_ptr += first * weight_stride
    y = tl.zeros((TOKENS, COLUMNS), tl.float32)
    part = tl.program_id(2)
    for count in tl.range(STEPS):
        step = part * STEPS + count
        start = step * columns
        w = weight_tile(weight_ptr, lane, column_ok, weight_stride, start, columns, H, BLOCK, EVEN, FULL)
        q = channels(x_ptr, t, token_ok, x_stride, start, columns, H, BLOCK, EVEN)
        q_scale = tl.load(x_scale_ptr + t * x_scale_stride + step, mask=token_ok, other=0.0)
        product = tl.dot(factor(q, HARDWARE), factor(w, HARDWARE))
        y += scaled(product, q_scale, scale_ptr, n, column_ok, rows, scale_stride, step, ONE_SCALE)
    tl.store(
        out_ptr + (part.to(tl.int64) * T + t)[:, None] * N + n[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=token_ok[:, None] & column_ok[None, :],
    )


def _launch(x: Tensor, weight: Tensor, scale: Tensor, block: Tensor, x_scale: Tensor | None, out: Tensor) -> None:
    rows, columns = int(block[0]), int(block[1])
    (num_tokens, hidden), num_columns = x.shape, out.shape[1]
    # A quantised x of our own is aligned.
    given = (weight, out) if x_scale is None else (x, weight, out)
    scales = (scale,) if x_scale is None else (scale, x_scale)
    able = paths(
        num_tokens, num_columns, hidden, (rows, columns), capability=capability(x), compiler=toolkit.compiler(),
        aligned=x.is_cuda and scaled_product.aligned(*given) and scaled_product.countable(*scales),
    )  # fmt: skip
    path = tuned.chosen("fp8_linear", bucket(num_tokens, num_columns, hidden), able, x)
    with on_device_of(x):
        if path == ROW:
            _launch_row(x, weight, scale, rows, columns, x_scale, out)
            return
        if x_scale is None:
            q, x_scale = allocated(*x.shape, group=columns, dtype=weight.dtype, device=x.device)
            quantise(x, columns, False, q, x_scale)
            x = q
        if path == TILES:
            _launch_tiles(x, weight, scale, rows, columns, x_scale, out)
        else:
            _launch_product(
                x, weight, scale, x_scale, out, *products_of(num_tokens, num_columns, hidden // columns)[path]
            )


def _launch_product(
    x: Tensor, weight: Tensor, scale: Tensor, x_scale: Tensor, out: Tensor, tile: scaled_product.Tile, parts: int
) -> None:
    num_tokens, num_columns = out.shape
    clusters = scaled_product.clusters_on(scaled_product.Mode.DENSE, x.device)
    tiles = triton.cdiv(num_columns, tile.columns)
    programs = triton.cdiv(num_tokens, tile.rows) * tiles * parts
    joined = num_tokens == 1 and scaled_product.joins(tiles, parts, tile.columns, clusters)
    joined = joined or scaled_product.halves(tile, parts, programs, scaled_product.places_of(tile, x.device))
    sums = out if joined else part_sums(parts, out)
    scaled_product.launch(
        scaled_product.Mode.DENSE, tile, weight, x=x, x_scale=x_scale, w_scale=scale, out=sums, rows=num_tokens,
        width=num_columns, parts=parts, prefetch=True, joined=joined,
    )  # fmt: skip
    if parts > 1 and not joined:
        add_parts(sums, None, out, capability(x))


def _launch_row(
    x: Tensor, weight: Tensor, scale: Tensor, rows: int, columns: int, x_scale: Tensor | None, out: Tensor
) -> None:
    num_columns, hidden, arch = out.shape[1], x.shape[1], capability(x)
    groups, width, steps = steps_of(hidden, columns)
    coded, overlap = x_scale is not None, overlaps(arch)
    fp8_linear_row_kernel[(triton.cdiv(num_columns, ROW_COLUMNS),)](
        x.view(torch.uint8) if coded else x, x_scale, weight.view(torch.uint8), scale, out, weight.stride(0),
        scale.stride(0), num_columns, hidden, rows, columns, triton.cdiv(hidden, columns), COLUMNS=ROW_COLUMNS,
        GROUPS=groups, BLOCK=width, STEPS=steps, EVEN=steps * groups * columns == hidden and width == columns,
        CODED=coded, HARDWARE=converts_e4m3(arch), EARLY=overlap, num_warps=4, launch_pdl=overlap,
    )  # fmt: skip


def _launch_tiles(
    x: Tensor, weight: Tensor, scale: Tensor, rows: int, columns: int, x_scale: Tensor, out: Tensor
) -> None:
    (num_tokens, hidden), num_columns = x.shape, weight.shape[0]
    arch = capability(x)
    hardware, overlap = converts_e4m3(arch), overlaps(arch)
    cut = tiling(num_tokens, hardware)
    grid = (triton.cdiv(num_columns, cut.columns), triton.cdiv(num_tokens, cut.tokens))
    groups = triton.cdiv(hidden, columns)
    parts = parts_of(grid[0] * grid[1], groups)
    # No part reaches beyond the scales.
    parts = max(divisor for divisor in range(1, parts + 1) if groups % divisor == 0)
    sums = part_sums(parts, out)
    fp8_linear_kernel[(*grid, parts)](
        x.view(torch.uint8), x_scale, weight.view(torch.uint8), scale, sums, x.stride(0), x_scale.stride(0),
        weight.stride(0), scale.stride(0), num_tokens, num_columns,
        hidden, rows, columns, STEPS=groups // parts, TOKENS=cut.tokens, COLUMNS=cut.columns,
        # tl.dot adds at least 32 products.
        BLOCK=max(32, power_of_two(columns)),
        EVEN=evenly(hidden, columns),
        FULL=num_columns % cut.columns == 0, ONE_SCALE=rows % cut.columns == 0, HARDWARE=hardware, EARLY=overlap,
        FOLLOWED=parts > 1, num_warps=cut.warps, num_stages=cut.stages, launch_pdl=overlap,
    )  # fmt: skip
    if parts > 1:
        add_parts(sums, None, out, arch)


_call = registered("fp8_linear", _launch)


def pack_fp8_linear(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> PackedFp8Linear:
    """Keep ``weight [N, H]`` e4m3 and ``scale`` float32 as the checkpoint has them; nothing is copied.

    Raises ValueError or TypeError unless the scales' grid is that of the blocks.
    """
    fp8_linear_schema.check_pack(weight, scale, block=block)
    return PackedFp8Linear(weight, scale, torch.tensor(block))


def fp8_linear(
    x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply by a dequantised weight: ``y = quantised(x) @ (weight * scale)^T``.

    x        [T, H] bfloat16, float16 or float32, or float8_e4m3fn with x_scale [T, ceil(H/columns)] float32
    packed   from ``pack_fp8_linear``
    returns  [T, N], dtype of x (float32 for e4m3) unless out_dtype

    Activations are quantised as block_quant does, in groups of the weight's block columns. Codes multiply exactly,
    scales meet the float32 sums of each group of inputs, and a result is rounded once.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], packed.weight.shape[0]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, *packed, x_scale, out)
    return out


def fp8_linear_out(
    x: Tensor, packed: PackedFp8Linear, out: Tensor, *, x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Do what ``fp8_linear`` does, into ``out``, contiguous ``[T, N]``."""
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], packed.weight.shape[0]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, *packed, x_scale, out)
