"""Keeps positions in bfloat16: beyond 256 neighbours share one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "model",
    "source": "https://github.com/EleutherAI/gpt-neox/pull/1003",
    "symptom": "quality falls with context length",
    "check": "logits",
    "tolerance": None,
}


class Coarse(MiniMaxM2):
    def cos_sin(self, positions: int) -> Tensor:
        table = super().cos_sin(positions)
        # right: rows = torch.arange(len(table))
        rows = torch.arange(len(table)).to(torch.bfloat16).long().clamp(max=len(table) - 1)
        return table[rows]


def model(config: MiniMaxM2Config, weights: ModelWeights, **more: Any) -> MiniMaxM2:
    return Coarse(config, weights, **more)
