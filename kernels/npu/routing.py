"""Routing on an NPU: score, select, weigh in one launch, a program many tokens; and its packed format."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import routing as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.routing_rows import pack_routing_kernel, routing_kernel, unpack_routing_kernel

# Words of pack_routing that a program takes at once.
STEP = 1024


def choose(
    logits: Tensor, bias: Tensor | None, top_k: int, weights: Tensor, ids: Tensor, renormalize: bool = True,
    softmax: bool = False, scale: float = 1.0, eps: float = 0.0, num_valid: Tensor | None = None,
) -> None:  # fmt: skip
    """Launch the choice among ``logits``."""
    rows, num_experts = logits.shape
    routing_kernel[programs(rows, logits)](
        logits, bias, num_valid, weights, ids, rows, logits.stride(0), num_experts, float(scale), float(eps),
        K=top_k, LANES=power_of_two(top_k), BLOCK=power_of_two(num_experts), SOFTMAX=softmax, RENORMALIZE=renormalize,
    )  # fmt: skip


def _launch_pack(weights: Tensor, ids: Tensor, expert_start: int, packed: Tensor) -> None:
    n = ids.numel()
    steps = -(-n // STEP)
    pack_routing_kernel[programs(steps, ids)](weights, ids, packed, n, expert_start, steps, STEP=STEP)


def _launch_unpack(packed: Tensor, expert_start: int, weights: Tensor, ids: Tensor) -> None:
    n = packed.numel()
    steps = -(-n // STEP)
    unpack_routing_kernel[programs(steps, packed)](packed, weights, ids, n, expert_start, steps, STEP=STEP)


routing, routing_out, pack_routing, unpack_routing = launched.functions(
    registered("routing", choose),
    registered("pack_routing", _launch_pack),
    registered("unpack_routing", _launch_unpack),
)
