"""Launches for an empty batch what no grid of zero blocks can launch."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/sgl-project/sglang/pull/20489",
    "symptom": "a crash under DP attention as soon as one rank has no tokens",
    "check": "raised",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    # right: is_launchable = True
    is_launchable = len(q) > 0
    if not is_launchable:
        raise RuntimeError("invalid configuration argument")
    return right("rope")(q, k, cos_sin, positions, rotary_dim=rotary_dim)
