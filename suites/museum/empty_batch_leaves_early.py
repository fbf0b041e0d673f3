"""Returns from an empty batch before the collectives that other ranks wait in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "model",
    "source": "https://github.com/sgl-project/sglang/pull/13892",
    "symptom": "a rank without tokens hangs all others",
    "check": "collectives",
    "tolerance": None,
}


class Early(MiniMaxM2):
    def step(self, ids: Tensor, *given: Any, **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        # right: is_empty = False
        is_empty = len(ids) == 0
        if is_empty:
            return torch.empty(0, self.config.vocab_size, dtype=self.dtype), {}
        return super().step(ids, *given, **more)


def model(config: MiniMaxM2Config, weights: ModelWeights, **more: Any) -> MiniMaxM2:
    return Early(config, weights, **more)
