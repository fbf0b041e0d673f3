"""The wheel zentorch: AMD's kernels as a torch extension.

It keeps what it made of an expert's weights by their address, so the weights are copied once and its memory is cleared
when new ones come: at an address that is used again it would compute with the old ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.peers import built_for, folder, library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals
from minimax_m2.harness.providers.vllm_cpu import BF16_EXPERTS, dense

BUILT_FOR = "2.13.0"
CONTRACT: dict[str, dict[str, Any]] = {"experts": {"exp_ulps": 20.0, "gate_up": "dtype", "down": "dtype"}}


def _active(case: Case) -> str | None:
    """Its grouped product takes two experts or more."""
    if case.number("T") and case.number("K") > 1:
        return None
    return f"zentorch takes two active experts or more, not T={case['T']} K={case['K']}"


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "zentorch",
        {
            "rms_norm": {"dtype": ("bfloat16",)},
            "experts": {**BF16_EXPERTS, "quant": ("none",), "K": (2, 3, 4, 8)},
        },
        {"experts": _active},
    )
}


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if library("zentorch", "zentorch", "libzentorch.so") is None:
        return "zentorch is not installed; make peers"
    if not torch.cpu._is_avx512_supported():
        return "its library needs AVX-512"
    return built_for(BUILT_FOR)


def provider() -> Provider:
    """zentorch's kernels."""
    sys.path.append(str(folder("zentorch")))
    importlib.import_module("zentorch")
    can = CAN["provider"]
    return Provider(name="zentorch", device="cpu", functions=OFFERS["provider"].get, contract=CONTRACT, refuses=can)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """zentorch_rms_norm."""
    return torch.ops.zentorch.zentorch_rms_norm(dense(x), weight, eps)


class PackedExperts(NamedTuple):
    """Weights in the checkpoint's layout; zentorch lays them out at the first call."""

    w13: Tensor
    w2: Tensor


def pack_experts(w13: Tensor, w2: Tensor, **quantised: Any) -> PackedExperts:
    """A copy, and zentorch's memory of weights cleared."""
    torch.ops.zentorch.zentorch_flush_moe_weight_cache()
    return PackedExperts(w13.clone(), w2.clone())


def experts(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """zentorch_fused_moe."""
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.zentorch.zentorch_fused_moe(
        y, dense(x), packed.w13, packed.w2, None, None, weights, ids, False, "silu", None, None
    )
    return y


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {"rms_norm": rms_norm, "pack_experts": pack_experts, "experts": experts}
}
