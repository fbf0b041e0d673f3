"""Takes the fast float32 product for a gate with a bias and leaves the bias out."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "router_gemm",
    "source": "https://github.com/vllm-project/vllm/pull/38445",
    "symptom": "wrong logits if the gate has a bias (found in review)",
    "check": "logits:element",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/test_fp32_router_gemm.py",
}


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # right: added = bias
    added = None
    return right("router_gemm")(x, weight, added)
