"""Rounds the number of an expert's blocks down, so the tokens of its last, partial block are lost."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "moe_align",
    "source": "https://github.com/vllm-project/vllm-xpu-kernels/pull/453",
    "symptom": "tail tokens vanish from the expert computation",
    "check": "sorted_slots:element",
    "tolerance": (0.0, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe_align_block_size.py",
}


def moe_align(
    ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    local = ids if expert_map is None else expert_map[ids.long().clamp(min=0)].masked_fill(ids < 0, -1)
    slots, count = local.flatten(), local.numel()
    blocks = min(count, (count + num_experts * (block - 1)) // block)
    sorted_slots = torch.full((blocks * block,), count, dtype=torch.int32)
    block_experts = torch.full((blocks,), -1, dtype=torch.int32)
    counts = torch.bincount(slots[slots >= 0].long(), minlength=num_experts)
    used = 0
    for expert in counts.nonzero().flatten().tolist():
        members = (slots == expert).nonzero().flatten().to(torch.int32)
        # right: run = -(-len(members) // block)
        run = len(members) // block
        kept = members[: run * block]
        sorted_slots[used * block : used * block + len(kept)] = kept
        block_experts[used : used + run] = expert
        used += run
    return sorted_slots, block_experts, torch.tensor([used * block], dtype=torch.int32), counts.to(torch.int32)
