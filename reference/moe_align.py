"""Sort (token, choice) slots by expert, each expert's run padded to whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract


def moe_align(
    ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None = None, contract: Contract = EXACT
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay slots ``t * K + k`` out so that every block of ``block`` entries belongs to one expert.

    ids         [T, K]; -1, and ids that expert_map [E] sends to -1, take no slot
    expert_map  translates ids first; all results are in the translated numbering
    returns, all int32, with N = T*K and L = min(N, (N + E*(block - 1)) // block) blocks, enough for any ids:
        sorted_slots   [L*block], each expert's slots rising; N where padded
        block_experts  [L]; -1 from the last used block on
        num_padded     [1], entries in use, a multiple of block
        counts         [E], slots of each expert

    Contract: no fields. Raises ValueError for an id or a translated id outside -1..num_experts-1.
    Source: vLLM moe_align_block_size, whose padding blocks are -1 since vllm#35161.
    """
    local = ids if expert_map is None else expert_map[ids.long().clamp(min=0)].masked_fill(ids < 0, -1)
    if ((local < -1) | (local >= num_experts)).any():
        raise ValueError(f"ids reach {int(local.min())}..{int(local.max())}; expected -1..{num_experts - 1}")
    slots, count = local.flatten(), local.numel()
    blocks = min(count, (count + num_experts * (block - 1)) // block)
    sorted_slots = torch.full((blocks * block,), count, dtype=torch.int32, device=ids.device)
    block_experts = torch.full((blocks,), -1, dtype=torch.int32, device=ids.device)
    counts = torch.bincount(slots[slots >= 0].long(), minlength=num_experts)
    used = 0
    for expert in counts.nonzero().flatten().tolist():
        members = (slots == expert).nonzero().flatten()
        run = -(-len(members) // block)
        sorted_slots[used * block : used * block + len(members)] = members.to(torch.int32)
        block_experts[used : used + run] = expert
        used += run
    num_padded = torch.tensor([used * block], dtype=torch.int32, device=ids.device)
    return sorted_slots, block_experts, num_padded, counts.to(torch.int32)
