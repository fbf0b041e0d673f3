"""Merges w3 before w1."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.reference.weights import Checkpoint, ModelWeights

EXHIBIT = {
    "subject": "loader",
    "source": "https://github.com/ikawrakow/ik_llama.cpp/pull/1624",
    "symptom": "gibberish from every expert",
    "check": "weights",
    "tolerance": None,
}


NAMES = {".w1.": ".w3.", ".w3.": ".w1."}


class Swapping(Checkpoint):
    def _read(self, name: str) -> Tensor:
        swapped = next((name.replace(old, new) for old, new in NAMES.items() if old in name), name)
        # right: read = name
        read = swapped
        return super()._read(read)


def load(folder: Path) -> ModelWeights:
    return Swapping(folder).load(torch.float64)
