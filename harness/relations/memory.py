"""Where a tensor lies in memory changes nothing: the same values at another address, alignment or stride."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op, all_ops
from minimax_m2.harness.relation import Arguments, Change, Relation

# Bytes behind a boundary of 128: one element, a register of 128 bits, one of 256, and a cache line, which is where
# allocators put tensors.
ALIGNMENTS = (2, 16, 32, 64)


def _same(outputs: Outputs, base: Outputs) -> Outputs:
    return outputs


def relocated(x: Tensor, offset: int) -> Tensor:
    """The same values and strides, on the same device.

    They begin ``offset`` bytes, rounded up to whole elements, behind a boundary of 128 bytes.
    """
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    shift = -(-offset // x.element_size())
    room = torch.empty(span * x.element_size() + 256, dtype=torch.uint8, device=x.device)
    start = -room.data_ptr() % 128 + shift * x.element_size()
    found = room[start : start + span * x.element_size()].view(x.dtype)
    found.copy_(x.as_strided((span,), (1,)))
    return found.as_strided(x.shape, x.stride(), found.storage_offset())


def _everywhere(value: Any, offset: int) -> Any:
    if isinstance(value, Tensor):
        # A cache spread over gigabytes stays where it is.
        return relocated(value, offset) if value.untyped_storage().nbytes() < 2**28 else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_everywhere(v, offset) for v in value))
    return value


def relocate(op: Op, case: Case, given: Arguments) -> Change | None:
    """Every tensor argument, those of packed values too, at another address."""
    offset = ALIGNMENTS[case.number("seed") % len(ALIGNMENTS)]
    return Change({name: _everywhere(value, offset) for name, value in given.items()}, _same)


# Within the budget: the float32 products of oneMKL take other paths at other alignments.
RELATIONS = (Relation(name="relocation", ops=tuple(all_ops()), relocate=relocate),)
