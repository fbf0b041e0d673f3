"""Knows shuffled weights by an attribute of the tensor that was shuffled, which a clone does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/ROCm/aiter/issues/2194",
    "symptom": "fused_moe gives other results when the same weights are cloned",
    "check": "y:element",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe.py",
}

SHUFFLED: set[int] = set()


def backwards(w: Tensor) -> Tensor:
    """The rows of every expert's weight in the opposite order; twice, and they are as they were."""
    return w[:, torch.arange(w.shape[1]).flip(0)]


def pack_experts(w13: Tensor, w2: Tensor, **more: Any) -> Any:
    packed = right("pack_experts")(w13, w2, **more)
    shuffled = backwards(packed.w13)
    SHUFFLED.add(shuffled.data_ptr())
    return packed._replace(w13=shuffled)


def experts(x: Tensor, packed: Any, *routed: Any, **more: Any) -> Tensor:
    # right: is_shuffled = True
    is_shuffled = packed.w13.data_ptr() in SHUFFLED
    ready = packed._replace(w13=backwards(packed.w13)) if is_shuffled else packed
    return right("experts")(x, ready, *routed, **more)
