"""Rounds the normalised row to the model's dtype before it is multiplied by the weight, without saying so."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.composites import rms_normalise

EXHIBIT = {
    "subject": "rms_norm",
    "source": "https://github.com/vllm-project/vllm/pull/27627",
    "symptom": "accuracy drifts: one rounding more than the checkpoint was trained with",
    "check": "y:mean",
    "tolerance": (1e-2, 1e-2),
    "tolerance_of": "sglang test/srt/cpu/test_norm.py",
}


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    normalised = rms_normalise(x.float(), eps=eps)
    # right: scaled = normalised * weight.float()
    scaled = normalised.to(x.dtype).float() * weight.float()
    return scaled.to(x.dtype)
