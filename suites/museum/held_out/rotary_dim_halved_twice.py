"""Applies the partial rotary factor to a rotary_dim that it has already made."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/vllm-project/vllm/pull/30389",
    "symptom": "garbled text: 32 channels of 128 turn instead of 64",
    "check": "q:element",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    # right: width = rotary_dim
    width = rotary_dim // 4 * 2
    return right("rope")(q, k, cos_sin, positions, rotary_dim=width)
