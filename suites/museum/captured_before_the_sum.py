"""Captures what a layer adds, without the residual stream that it is added to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "model",
    "source": "https://github.com/sgl-project/sglang/pull/13297",
    "symptom": "EAGLE3 capture lacks pieces (a class of reports); here the residual stream",
    "check": "capture",
    "tolerance": None,
}


class Partial(MiniMaxM2):
    def step(self, *given: Any, **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        logits, states = super().step(*given, **more)
        streams = dict(sorted(states.items()))
        before = {key: streams.get(key - 1, torch.zeros_like(state)) for key, state in streams.items()}
        # right: captured = streams
        captured = {key: streams[key] - before[key] for key in streams}
        return logits, captured


def model(config: MiniMaxM2Config, weights: ModelWeights, **more: Any) -> MiniMaxM2:
    return Partial(config, weights, **more)
