"""Keeps the kernel that the first call chose: one for up to 32 tokens."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "router_gemm",
    "source": "https://github.com/vllm-project/vllm/pull/38445",
    "symptom": "the branch is frozen by compilation, so later batches run the wrong kernel (found in review)",
    "check": "logits:element",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/test_fp32_router_gemm.py",
}


PLANS: dict[str, bool] = {}
SMALL = 32


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = right("router_gemm")(x, weight, bias)
    # right: is_small = len(x) <= SMALL
    is_small = PLANS.setdefault("is_small", len(x) <= SMALL)
    if is_small:
        logits[SMALL:] = 0.0
    return logits
