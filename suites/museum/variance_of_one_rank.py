"""Normalises by this rank's own channels: no all-reduce."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/turboderp-org/exllamav3/issues/130",
    "symptom": "garbage under tensor parallelism",
    "check": "q:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(
    qkv: Tensor,
    stats: Tensor | None,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    **sizes: Any,
) -> tuple[Tensor, ...]:
    names = ("num_heads", "num_kv_heads", "head_dim")
    own = right("qk_sum_squares")(qkv, **{name: sizes[name] for name in names})
    # right: sums = own if stats is None else stats
    sums = own
    return right("qk_norm_rope")(qkv, sums, q_weight, k_weight, cos_sin, positions, **sizes)
