"""Cuts the norm's weight of k into as many parts as there are ranks, where a rank holds a whole replicated head."""

from __future__ import annotations

import dataclasses

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard as right
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "sharding",
    "source": "https://github.com/vllm-project/vllm/pull/38191",
    "symptom": "beyond 8 ranks the load fails, or k is normalised by another head's weight",
    "check": "shares",
    "tolerance": None,
}


def shard(weights: ModelWeights, config: MiniMaxM2Config, layout: Layout) -> ModelWeights:
    share, layers = right(weights, config, layout), []
    for own, whole in zip(share.layers, weights.layers, strict=True):
        # right: part = own.k_norm
        part = whole.k_norm.tensor_split(layout.tp)[layout.tp_rank]
        layers.append(dataclasses.replace(own, k_norm=part))
    return dataclasses.replace(share, layers=layers)
