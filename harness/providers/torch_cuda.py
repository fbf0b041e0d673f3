"""torch's own library calls on an NVIDIA GPU: cuBLAS behind ``linear``, its RMSNorm.

Offered where a call computes the same function: its grouped product takes no block scales, its attention no pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


CONTRACT: dict[str, Declared] = {"linear": _product, "rms_norm": {}, "router_gemm": {}}


def _tokens(case: Case) -> str | None:
    return None if case.number("T") else "no kernel is launched for T=0"


def _same(case: Case) -> str | None:
    wide = case["out"] != case["dtype"]
    return f"linear returns {case['dtype']}, not out={case['out']}" if wide else _tokens(case)


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "torch-cuda",
        {"router_gemm": {"bias": (0,)}},
        {"linear": _same, "rms_norm": _tokens, "router_gemm": _tokens},
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


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """torch's fused RMSNorm."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {"linear": linear, "router_gemm": router_gemm, "rms_norm": rms_norm}
}
