"""Hugging Face transformers op by op: its modules called as the ops they compute, under the contract they keep.

It normalises, weighs, rotates and activates in float32 or in the model's dtype, and stores every step in the latter;
its experts add up in the model's dtype, one expert after the other. What it does not do is refused by name.

Its eager attention is not offered: it rounds softmax's quotient, and where one key wins the budget takes the errors of
a row for independent although they are one. Of 102 cases one then alarms falsely (1.12 times the row limit).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.op import Op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.transformers import refuse_full_rotation, stock_module

CONTRACT: dict[str, dict[str, Any]] = {
    "rms_norm": {"normalised": "dtype"},
    "router": {},
    "experts": {
        "gate_up": "dtype",
        "silu": "dtype",
        "act": "dtype",
        "down": "dtype",
        "weighted": "dtype",
        "combine": "dtype",
    },
    "rope": {"cos_sin": "dtype", "products": "dtype"},
    "linear": {},
    "lm_head": {"out": "dtype"},
}

# Case fields that transformers has no way to express, by op: the values it can.
CAN: dict[str, dict[str, tuple[Any, ...]]] = {
    "router": {"scoring": ("sigmoid",), "renormalize": (1,), "bias": ("small", "large"), "valid": (0,)},
    "experts": {"quant": ("none",), "ids": ("int32", "int64"), "map": (0,)},
}


def transformers_ops(device: str = "cpu") -> Provider:
    """The installed transformers on ``device``; OracleRefused where its version ignores ``rotary_dim``."""
    refuse_full_rotation(stock_module())
    offered: dict[str, Callable[..., Any]] = {
        "rms_norm": rms_norm,
        "router": router,
        "experts": experts,
        "pack_experts": pack_experts,
        "rope": rope,
        "linear": linear,
        "lm_head": lm_head,
    }
    return Provider(name="transformers", device=device, functions=offered.get, contract=CONTRACT, refuses=refuses)


def refuses(op: Op, case: Case) -> str | None:
    """Why transformers cannot run a case."""
    for field, values in CAN.get(op.name, {}).items():
        if field in case and case[field] not in values:
            return f"transformers has no {op.name} with {field}={case[field]}"
    if op.name in ("experts", "linear") and case["out"] != case["dtype"]:
        return f"transformers has no {op.name} that turns {case['dtype']} into {case['out']}"
    return None


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """MiniMaxM2RMSNorm."""
    module = stock_module().MiniMaxM2RMSNorm(x.shape[-1], eps)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module(x)


def router(
    x: Tensor, weight: Tensor, bias: Tensor, *, top_k: int, indices_dtype: torch.dtype = torch.int32, **choice: Any
) -> tuple[Tensor, Tensor]:
    """MiniMaxM2TopKRouter; its ids are int64 and are converted here."""
    E, H = weight.shape
    module = stock_module().MiniMaxM2TopKRouter(
        SimpleNamespace(num_experts_per_tok=top_k, num_local_experts=E, hidden_size=H)
    )
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    _, weights, ids = module(x, bias)
    return weights, ids.to(indices_dtype)


def pack_experts(
    w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None, **blocks: Any
) -> Any:
    """MiniMaxM2Experts, whose layout is the checkpoint's; ValueError for scaled weights, which it cannot hold."""
    if w13_scale is not None or w2_scale is not None:
        raise ValueError("w13_scale or w2_scale is given; transformers' experts take plain weights: dequantise first")
    E, H, I = w2.shape
    module = stock_module().MiniMaxM2Experts(
        SimpleNamespace(
            num_local_experts=E, hidden_size=H, intermediate_size=I, hidden_act="silu", _experts_implementation="eager"
        )
    )
    module.gate_up_proj = torch.nn.Parameter(w13, requires_grad=False)
    module.down_proj = torch.nn.Parameter(w2, requires_grad=False)
    return module


def experts(x: Tensor, packed: Any, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """MiniMaxM2Experts.forward; "no expert" is E to it, not -1."""
    return packed(x, torch.where(ids < 0, packed.num_experts, ids.long()), weights)


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """apply_rotary_pos_emb on ``[1, T, heads, D]``; its angles are the table's, not MiniMaxM2RotaryEmbedding's."""
    rows = cos_sin.index_select(0, positions)[None, :, :rotary_dim].to(q.dtype)
    cos, sin = (torch.cat([half, half], -1) for half in rows.chunk(2, -1))
    turned = stock_module().apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)
    return turned[0][0], turned[1][0]


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """The torch.nn.Linear of its projections."""
    return torch.nn.functional.linear(x, weight)


def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    """The torch.nn.Linear of its head, whose logits have the model's dtype and are compared in float32."""
    chosen = x if rows is None else x.index_select(0, rows)
    return torch.nn.functional.linear(chosen, weight[:vocab_size]).float()
