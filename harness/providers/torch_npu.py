"""torch_npu's fused operators under our signatures, as engines call them for MiniMax-M2 on Ascend.

They are called as ``torch.ops.npu.<name>``, so the same calls meet the device's operators, or at level N4 those of
``harness/npu/torch_npu_emulated.py``, under the same schemas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals

MASK = 2048


class PackedExperts(NamedTuple):
    """Weights as ``npu_grouped_matmul`` takes them, views of the checkpoint's."""

    w13: Tensor  # [E, H, 2*I]
    w2: Tensor  # [E, I, H]


def torch_npu(device: str = "npu") -> Provider:
    """The operators, as a provider."""
    return Provider(name="torch_npu", device=device, functions=FUNCTIONS.get, contract=CONTRACT, refuses=CAN)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    y, _ = torch.ops.npu.npu_rms_norm(x, weight, epsilon=eps)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    y, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, weight, epsilon=eps)
    return y, total


def swiglu(gate_up: Tensor) -> Tensor:
    return torch.ops.npu.npu_swiglu(gate_up, dim=-1)


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
    scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One group of all experts; what a NaN chooses is not documented, so its row gets what our op promises."""
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits.float(), top_k, bias=bias, k_group=1, group_count=1, group_select_mode=1, renorm=0, norm_type=1,
        routed_scaling_factor=scale, eps=eps,
    )  # fmt: skip
    unordered = logits.isnan().any(-1, keepdim=True)
    return weights.masked_fill(unordered, torch.nan), ids.masked_fill(unordered, -1).to(indices_dtype)


def pack_experts(
    w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> PackedExperts:  # fmt: skip
    return PackedExperts(w13.mT, w2.mT)


def experts(
    x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, *, expert_map: Tensor | None = None,
    x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Sort by expert, two grouped products around SwiGLU, and back.

    A slot without an expert goes to expert 0 with weight 0: the operators know no id of -1.
    """
    if len(x) == 0:
        return torch.empty_like(x)
    local = ids if expert_map is None else expert_map[ids.clamp(min=0).long()].masked_fill(ids < 0, -1)
    num_experts = packed.w13.shape[0]
    rows, place, counts, _ = torch.ops.npu.npu_moe_init_routing_v2(
        x, local.clamp(min=0).to(torch.int32), active_num=ids.numel(), expert_num=num_experts, expert_tokens_num_type=1,
        expert_tokens_num_flag=True, quant_mode=-1, active_expert_range=[0, num_experts],
    )  # fmt: skip
    gate_up = _grouped(rows, packed.w13, counts)
    down = _grouped(torch.ops.npu.npu_swiglu(gate_up, dim=-1), packed.w2, counts)
    probs = weights.masked_fill(local < 0, 0.0).to(x.dtype)
    return torch.ops.npu.npu_moe_token_unpermute(down, place.abs(), probs=probs)


def _grouped(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    (y,) = torch.ops.npu.npu_grouped_matmul(
        [x], [weight], split_item=2, group_type=0, group_list_type=1, group_list=counts
    )
    return y


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, *,
    scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> Tensor:  # fmt: skip
    """Packed queries on a paged cache. The operator wants lengths on the host, so this waits for the device."""
    starts = query_start.tolist()
    y = torch.zeros_like(q)
    own = slice(starts[0], starts[-1])
    if starts[-1] == starts[0]:
        return y
    heads, pages = q.shape[1], k_cache.shape[0]
    y[own], _ = torch.ops.npu.npu_fused_infer_attention_score(
        q[own], k_cache.reshape(pages, k_cache.shape[1], -1), v_cache.reshape(pages, v_cache.shape[1], -1),
        atten_mask=mask(q.device), block_table=block_table.to(torch.int32), input_layout="TND",
        block_size=k_cache.shape[1], actual_seq_lengths=[end - starts[0] for end in starts[1:]],
        actual_seq_lengths_kv=seq_lens.tolist(), num_heads=heads, num_key_value_heads=k_cache.shape[2], scale=scale,
        sparse_mode=3,
    )  # fmt: skip
    return y


@cache
def mask(device: torch.device) -> Tensor:
    """The compressed causal mask of sparse_mode 3: 1 hides."""
    return torch.triu(torch.ones(MASK, MASK, dtype=torch.int8), diagonal=1).to(device)


# Every operator returns the dtype that it was given: what is between two of them is rounded.
CONTRACT: dict[str, dict[str, Any]] = {
    "experts": {"routing_weights": "bfloat16", "gate_up": "dtype", "act": "dtype", "down": "dtype", "weighted": None}
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "swiglu": swiglu,
    "routing": routing,
    "pack_experts": pack_experts,
    "experts": experts,
    "attention": attention,
}


# Cards of this generation have no floats of 8 bits; npu_moe_gating_top_k renormalises sigmoids and nothing else.
CAN = Refusals(
    "torch_npu",
    {
        "routing": {"scoring": ("sigmoid",), "renormalize": (1,), "valid": (0,)},
        # One or two channels of bfloat16 leave nothing to judge.
        "experts": {
            "dtype": ("bfloat16",), "out": ("bfloat16",), "quant": ("none",), "ids": ("int32", "int64"),
            "H": (64, 96, 128, 65, 257),
        },
        "attention": {
            "dtype": ("bfloat16", "float16"), "cache": ("bfloat16", "float16"), "kv_scale": ("none",),
            "page": (16, 64, 128), "D": (64, 128, 16, 96, 256), "queries": ("one", "all", "chunk", "mixed"),
        },
    },
)  # fmt: skip
