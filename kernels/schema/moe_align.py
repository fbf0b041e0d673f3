"""Schema and host-side checks of ``moe_align``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define(
    "moe_align(Tensor ids, int num_experts, int block, Tensor? expert_map, Tensor(a!) sorted_slots, "
    "Tensor(b!) block_experts, Tensor(c!) num_padded, Tensor(d!) counts) -> ()"
)


def check(ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None) -> None:
    """Raise what the host can know about the arguments of ``moe_align``."""
    schema.expect_shape("ids", ids, (None, None), "[T, K]")
    schema.expect_dtype("ids", ids, schema.INDICES)
    schema.expect_contiguous("ids", ids)
    schema.expect_range("num_experts", num_experts, 1, 2**31 - 1, "MiniMax-M2 has 256")
    schema.expect_range("block", block, 1, 2**31 - 1, "it is the row tile of the kernel that follows")
    padded = length(ids.numel(), num_experts, block) * block
    schema.expect_range("padded slots", padded, 0, 2**31 - 1, "slots are int32: split the batch")
    if expert_map is not None:
        schema.expect_shape("expert_map", expert_map, (None,), "[E]")
        schema.expect_dtype("expert_map", expert_map, (torch.int32,))
        schema.expect_contiguous("expert_map", expert_map)
        schema.expect_device("expert_map", expert_map, ids.device)


def length(slots: int, num_experts: int, block: int) -> int:
    """Blocks that are enough for any ids: each expert in use wastes less than one."""
    return min(slots, (slots + num_experts * (block - 1)) // block)


def shapes(ids: Tensor, *, num_experts: int, block: int) -> dict[str, tuple[int]]:
    """Shapes of the four outputs, in order."""
    blocks = length(ids.numel(), num_experts, block)
    return {
        "sorted_slots": (blocks * block,),
        "block_experts": (blocks,),
        "num_padded": (1,),
        "counts": (num_experts,),
    }


def check_output(name: str, out: Tensor, *, shape: tuple[int], device: torch.device) -> None:
    """Raise what the host can know about a tensor that ``moe_align_out`` fills."""
    schema.expect_shape(name, out, shape, "[length]")
    schema.expect_dtype(name, out, (torch.int32,))
    schema.expect_contiguous(name, out)
    schema.expect_device(name, out, device)
