"""Deals key/value heads to ranks in turn, 0 1 0 1, where neighbouring ranks share a head, 0 0 1 1."""

from __future__ import annotations

import dataclasses

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard as right
from minimax_m2.reference.weights import ModelWeights

EXHIBIT = {
    "subject": "sharding",
    "source": "https://github.com/NVIDIA/TensorRT-LLM/pull/14314",
    "symptom": "q meets keys of another group where ranks outnumber key/value heads",
    "check": "shares",
    "tolerance": None,
}


def shard(weights: ModelWeights, config: MiniMaxM2Config, layout: Layout) -> ModelWeights:
    share, ranks, heads = right(weights, config, layout), layout.tp, config.num_key_value_heads
    if ranks <= heads:
        return share
    # right: donor = layout.rank
    donor = layout.rank % heads * ranks // heads
    pairs = zip(share.layers, right(weights, config, dataclasses.replace(layout, rank=donor)).layers, strict=True)
    return dataclasses.replace(share, layers=[dataclasses.replace(a, k_norm=b.k_norm) for a, b in pairs])
