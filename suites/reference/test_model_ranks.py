"""The model's collectives stand where tensor parallelism needs them: ranks that hold shares compute the whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import LayerWeights, Weight

CONFIG = MiniMaxM2Config(
    vocab_size=31,
    hidden_size=40,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=16,
    rotary_dim=6,
    num_local_experts=5,
    num_experts_per_tok=2,
)
WEIGHTS = random_weights(CONFIG, seed=9)
# Sums split over ranks are sums in another order: some fifty of at most 192 terms, sqrt(50 * 192) roundings and a
# factor of ten for what norms and the softmax stretch.
ANOTHER_ORDER = 1000 * 2.0**-52


def share(layer: LayerWeights, rank: int, size: int) -> LayerWeights:
    """Return a rank's heads and its columns of every expert."""

    def rows(weight: Weight, *parts: int, dim: int = 0) -> Tensor:
        assert isinstance(weight, Tensor), "random weights are plain"
        return torch.cat([part.chunk(size, dim)[rank] for part in weight.split(list(parts), dim)], dim)

    q, kv, width = CONFIG.q_width, CONFIG.kv_width, CONFIG.intermediate_size
    return dataclasses.replace(
        layer,
        qkv_proj=rows(layer.qkv_proj, q, kv, kv),
        q_norm=rows(layer.q_norm, q),
        k_norm=rows(layer.k_norm, kv),
        o_proj=rows(layer.o_proj, q, dim=1),
        w13=rows(layer.w13, width, width, dim=1),
        w2=rows(layer.w2, width, dim=2),
    )


def logits_of(size: int, ids: Tensor) -> tuple[list[Tensor], Threads]:
    """Run the model on ``size`` simulated ranks."""

    def rank_main(communicator: Communicator) -> Tensor:
        layers = [share(layer, communicator.rank, size) for layer in WEIGHTS.layers]
        return MiniMaxM2(CONFIG, dataclasses.replace(WEIGHTS, layers=layers), communicator=communicator)(ids)

    group = Threads(size, timeout_s=60)
    return group.run(rank_main), group


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_with_shares_compute_the_whole_model(size: int) -> None:
    ids = torch.arange(9)
    expected = MiniMaxM2(CONFIG, WEIGHTS)(ids)
    logits, _ = logits_of(size, ids)
    differences = [float((rank - expected).abs().max() / expected.abs().max()) for rank in logits]
    assert max(differences) < ANOTHER_ORDER


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_collectives_do_not_depend_on_the_number_of_tokens(tokens: int) -> None:
    # A layer reduces three times: the statistics of q and k, attention's output, the experts' output.
    _, group = logits_of(2, torch.arange(tokens))
    assert [count["all_reduce"] for count in group.counts] == [3 * CONFIG.num_hidden_layers] * 2
