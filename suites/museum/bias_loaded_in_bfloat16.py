"""Allocates the correction bias in the model's dtype, so loading rounds it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.reference.weights import Checkpoint, ModelWeights

EXHIBIT = {
    "subject": "loader",
    "source": "https://github.com/sgl-project/sglang/pull/37133",
    "symptom": "other experts than the checkpoint was trained with",
    "check": "weights",
    "tolerance": None,
}


class Rounding(Checkpoint):
    def _read(self, name: str) -> Tensor:
        stored = super()._read(name)
        # right: kept = stored
        kept = stored.to(torch.bfloat16).to(stored.dtype) if name.endswith("e_score_correction_bias") else stored
        return kept


def load(folder: Path) -> ModelWeights:
    return Rounding(folder).load(torch.float64)
