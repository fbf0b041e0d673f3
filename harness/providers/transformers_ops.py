"""Hugging Face transformers op by op: its modules called as the ops they compute, under the contract they keep.

It normalises, weighs and activates in float32 and stores every step in the model's dtype; its experts add up in the
model's dtype, one expert after the other. What it does not do is refused by name.

Its rope is not offered: it subtracts products already rounded to the model's dtype, whose differences lie on so few
points between two neighbours that the budget understates the last rounding by 5 % in variance, and an output of M2's
width then alarms falsely (1.2 times the gain limit).
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
    }
    return Provider(name="transformers", device=device, functions=offered.get, contract=CONTRACT, refuses=refuses)


def refuses(op: Op, case: Case) -> str | None:
    """Why transformers cannot run a case."""
    for field, values in CAN.get(op.name, {}).items():
        if field in case and case[field] not in values:
            return f"transformers has no {op.name} with {field}={case[field]}"
    if op.name == "experts" and case["out"] != case["dtype"]:
        return f"transformers has no experts that turn {case['dtype']} into {case['out']}"
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
