"""Captures the hidden states after layer l, where EAGLE3's draft was trained on those at its entry."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "model",
    "source": "https://github.com/vllm-project/vllm/pull/43671",
    "symptom": "the draft's tokens are accepted 10 % of the time instead of 45 %",
    "check": "capture",
    "tolerance": None,
}


class Late(MiniMaxM2):
    def step(self, *given: Any, capture: Collection[int] = (), **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        # right: offset = 0
        offset = 1
        last = self.config.num_hidden_layers
        logits, states = super().step(*given, capture={min(k + offset, last) for k in capture}, **more)
        return logits, {key: states[min(key + offset, last)] for key in capture}


def model(config: MiniMaxM2Config, weights: ModelWeights, **more: Any) -> MiniMaxM2:
    return Late(config, weights, **more)
