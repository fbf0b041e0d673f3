"""Never applies the routed scaling factor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/sgl-project/sglang/pull/29909",
    "symptom": "routed experts weigh too little on NPU",
    "check": "weights:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(logits: Tensor, bias: Tensor | None, *, scale: float = 1.0, **asked: Any) -> tuple[Tensor, Tensor]:
    # right: factor = scale
    factor = 1.0
    return right("routing")(logits, bias, scale=factor, **asked)
