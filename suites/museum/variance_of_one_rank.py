"""Normalises by this rank's own channels: no all-reduce."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import own_sums, right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/turboderp-org/exllamav3/issues/130",
    "symptom": "garbage under tensor parallelism",
    "check": "q:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(qkv: Tensor, stats: Tensor | None, *others: Tensor, **sizes: Any) -> tuple[Tensor, ...]:
    # right: sums = own_sums(qkv, sizes) if stats is None else stats
    sums = own_sums(qkv, sizes)
    return right("qk_norm_rope")(qkv, sums, *others, **sizes)
