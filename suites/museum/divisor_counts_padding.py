"""Divides by the padded local width, where zero heads fill an uneven share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/sgl-project/sglang/pull/31956",
    "symptom": "q is 1.5 times too large at TP6 (read in the code, not run)",
    "check": "q:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(qkv: Tensor, stats: Tensor | None, *others: Tensor, **sizes: Any) -> tuple[Tensor, ...]:
    # right: divisor = sizes["q_width"]
    divisor = max(sizes["q_width"], sizes["num_heads"] * sizes["head_dim"])
    return right("qk_norm_rope")(qkv, stats, *others, **(sizes | {"q_width": divisor}))
