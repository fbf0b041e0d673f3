"""Spaces the frequencies over head_dim, where only rotary_dim channels turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "model",
    "source": "https://github.com/pie-project/pie/issues/602",
    "symptom": "short prompts look fine and long contexts drift",
    "check": "logits",
    "tolerance": None,
}


class Wide(MiniMaxM2):
    def cos_sin(self, positions: int) -> Tensor:
        config = self.config
        # right: width = config.rotary_dim
        width = config.head_dim
        table = cos_sin_table(num_positions=positions, rotary_dim=width, theta=config.rope_theta)
        half = config.rotary_dim // 2
        return torch.cat([part[:, :half] for part in table.chunk(2, -1)], -1).to(self._rope_dtype)


def model(config: MiniMaxM2Config, weights: ModelWeights, **more: Any) -> MiniMaxM2:
    return Wide(config, weights, **more)
