"""torch's own library calls on an NVIDIA GPU: cuBLAS for dense layers, its RMSNorm, its grouped product.

Offered where a call computes the same function: the grouped product takes no block scales, its attention no pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness import devices
from minimax_m2.harness.case import Case
from minimax_m2.harness.op import Declared
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"


def _product(case: Case) -> dict[str, Any]:
    """Tensor cores add products of 16-bit factors; torch asks cuBLAS for float32 where both are."""
    return {} if case["dtype"] == "float32" else {"tensor_core": "bfloat16"}


# transformers' grouped_mm: rows between the products are bf16, the sum over choices is float32.
EXPERTS = {
    "exp_ulps": 2.0, "gate_up": "dtype", "silu": "dtype", "act": "dtype", "down": "dtype", "weighted": None,
    "tensor_core": "bfloat16",
}  # fmt: skip
CONTRACT: dict[str, Declared] = {
    "linear": _product,
    "lm_head": lambda case: {**_product(case), "out": "dtype"},
    "rms_norm": {},
    "router_gemm": {},
    "experts": EXPERTS,
}


def _tokens(case: Case) -> str | None:
    return None if case.number("T") else "no kernel is launched for T=0"


def _same(case: Case) -> str | None:
    wide = case["out"] != case["dtype"]
    return f"{case['op']} returns {case['dtype']}, not out={case['out']}" if wide else _tokens(case)


def _aligned(case: Case) -> str | None:
    odd = [name for name in ("H", "I") if case.number(name) % 8]
    told = f"_grouped_mm takes rows of 16 bytes, not {odd[0]}={case[odd[0]]}" if odd else None
    return _same(case) or told


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "torch-cuda",
        {
            "router_gemm": {"bias": (0,)},
            "experts": {
                "dtype": ("bfloat16",),
                "quant": ("none",),
                "ids": ("int32", "int64"),
                "map": (0,),
                "load": ("even", "hot", "same"),
                "gap": (0,),
            },
        },
        {"linear": _same, "lm_head": _tokens, "rms_norm": _tokens, "router_gemm": _tokens, "experts": _aligned},
        {"experts": {"H": (64, 128), "I": (32, 64)}},
    )
}


def absence() -> str | None:
    """Why there is no GPU to run on, or None."""
    return devices.absence(DEVICE)


def provider() -> Provider:
    """torch."""
    return Provider(
        name="torch-cuda", device=DEVICE, functions=OFFERS["provider"].get, contract=CONTRACT, refuses=CAN["provider"]
    )


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """cuBLAS."""
    return functional.linear(x, weight)


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """cuBLAS in float32, TF32 off, after a conversion of x."""
    return functional.linear(x.float(), weight)


def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    """cuBLAS in the model's dtype, widened afterwards, as engines do."""
    return functional.linear(x if rows is None else x[rows], weight[:vocab_size]).float()


class PackedExperts(NamedTuple):
    """The checkpoint's layout."""

    w13: Tensor
    w2: Tensor


def pack_experts(w13: Tensor, w2: Tensor, **scales: Any) -> PackedExperts:
    """Keep everything as it is."""
    return PackedExperts(w13, w2)


def experts(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """torch._grouped_mm over slots sorted by expert, as transformers' implementation of that name."""
    tokens, top_k = ids.shape
    owners, order = ids.flatten().sort(stable=True)
    every = torch.arange(packed.w13.shape[0], dtype=owners.dtype, device=x.device)
    ends = torch.searchsorted(owners, every, right=True, out_int32=True)
    gate_up = torch._grouped_mm(x[order // top_k], packed.w13.transpose(1, 2), offs=ends)
    gate, up = gate_up.chunk(2, -1)
    down = torch._grouped_mm(functional.silu(gate) * up, packed.w2.transpose(1, 2), offs=ends)
    weighted = down * weights.flatten()[order, None]
    return weighted[order.argsort()].view(tokens, top_k, -1).sum(1).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """torch's fused RMSNorm."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {
        "linear": linear,
        "lm_head": lm_head,
        "router_gemm": router_gemm,
        "rms_norm": rms_norm,
        "pack_experts": pack_experts,
        "experts": experts,
    }
}
