"""Align: a sort by expert passes; each way engines have got the padding wrong is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def moe_align(ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None = None,
              step: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Align by one stable sort; ``step`` names one thing to do wrong."""
    if step == "reads int64 ids as int32" and ids.dtype == torch.int64:
        ids = ids.view(torch.int32)[:, : ids.shape[1]]
    if expert_map is not None and step != "ignores expert_map":
        last = expert_map[ids.long()]  # -1 indexes the last entry
        ids = last if step == "maps -1 to the last expert" else last.masked_fill(ids < 0, -1)
    slot_expert = ids.flatten().long()
    slots = slot_expert.numel()
    order = slot_expert.argsort(stable=True)
    order = order[slot_expert[order] >= 0]
    counts = slot_expert[order].clamp(max=num_experts - 1).bincount(minlength=num_experts)
    runs = (counts + block - 1) // block
    start = (runs.cumsum(0) - runs) * block
    within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[slot_expert[order].clamp(max=num_experts - 1)]
    length = min(slots, (slots + num_experts * (block - 1)) // block)
    filler = 0 if step == "pads slots with 0" else slots
    sorted_slots = torch.full((length * block,), filler, dtype=torch.int32)
    sorted_slots[start[slot_expert[order].clamp(max=num_experts - 1)] + within] = order.to(torch.int32)
    pad = 0 if step == "gives padding blocks to expert 0" else -1
    block_experts = torch.full((length,), pad, dtype=torch.int32)
    used = torch.arange(num_experts, dtype=torch.int32).repeat_interleave(runs)
    block_experts[: len(used)] = used
    total = len(order) if step == "counts slots instead of padded ones" else int(runs.sum()) * block
    return sorted_slots, block_experts, torch.tensor([total], dtype=torch.int32), counts.to(torch.int32)


def doing(step: str) -> Callable[..., Any]:
    def wrong(*args: Any, **keywords: Any) -> Any:
        return moe_align(*args, **keywords, step=step)

    return wrong


def test_a_stable_sort_passes() -> None:
    assert all(v.passed for v in try_on("moe_align", moe_align, cases=200))


@pytest.mark.parametrize("step", ["reads int64 ids as int32", "ignores expert_map", "maps -1 to the last expert",
                                  "pads slots with 0", "gives padding blocks to expert 0",
                                  "counts slots instead of padded ones"])  # fmt: skip
def test_a_wrong_alignment_is_told(step: str) -> None:
    last = try_on("moe_align", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.RAISED), last.explain()
