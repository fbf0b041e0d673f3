"""Sums over a long dimension cut into parts, so that a small product keeps every multiprocessor busy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import chained, take_turn

# Programs that keep every multiprocessor of a large GPU busy.
PROGRAMS = 256
ADDED = 512


def parts_of(tiles: int, steps: int, programs: int = PROGRAMS) -> int:
    """Into how many parts the ``steps`` of a sum are cut where ``tiles`` programs make one part: at least 2 steps each.

    None is empty. It hangs on shapes alone, so a sum has the same order whatever the values beside it.
    """
    parts = max(1, min(programs // max(tiles, 1), steps // 2))
    return triton.cdiv(steps, triton.cdiv(steps, parts))


@triton.jit
def add_parts_kernel(part_ptr, bias_ptr, out_ptr, n, width, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr,
                     BLOCK: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    take_turn(EARLY, FOLLOWED)
    total = tl.load(part_ptr + at, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(part_ptr + tl.cast(part, tl.int64) * n + at, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + at % width, mask=inside, other=0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


def add_parts(parts: Tensor, bias: Tensor | None, out: Tensor, capability: int) -> None:
    """Write the sum of ``parts [P, T, N]`` float32, and a bias ``[N]``, to ``out``, in the order of the parts."""
    programs = triton.cdiv(out.numel(), ADDED)
    add_parts_kernel[(programs,)](
        parts, bias, out, out.numel(), out.shape[1], PARTS=parts.shape[0], HAS_BIAS=bias is not None, BLOCK=ADDED,
        num_warps=4, **chained(capability, 4 * programs, tokens=out.shape[0]),
    )  # fmt: skip


def part_sums(parts: int, out: Tensor) -> Tensor:
    """Where a product writes its parts: ``out`` itself where there is one, which is then rounded at once."""
    return out if parts == 1 else torch.empty((parts, *out.shape), dtype=torch.float32, device=out.device)
