"""The model's collectives stand where tensor parallelism needs them: ranks that hold shares compute the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard

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


def logits_of(size: int, ids: Tensor) -> tuple[list[Tensor], Threads]:
    """Run the model on ``size`` simulated ranks."""

    def rank_main(communicator: Communicator) -> Tensor:
        weights = shard(WEIGHTS, CONFIG, Layout(tp=size, rank=communicator.rank))
        return MiniMaxM2(CONFIG, weights, communicator=communicator)(ids)

    group = Threads(size, timeout_s=60)
    return group.run(rank_main), group


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_ranks_with_shares_compute_the_whole_model(size: int) -> None:
    ids = torch.arange(9)
    expected = MiniMaxM2(CONFIG, WEIGHTS)(ids)
    logits, _ = logits_of(size, ids)
    differences = [float((rank - expected).abs().max() / expected.abs().max()) for rank in logits]
    assert max(differences) < ANOTHER_ORDER


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_collectives_do_not_depend_on_the_number_of_tokens(tokens: int) -> None:
    # A layer reduces three times: the statistics of q and k, attention's output, the experts' output; the model once
    # more, for the embedding, and gathers logits.
    _, group = logits_of(2, torch.arange(tokens))
    assert group.counts == [{"all_reduce": 3 * CONFIG.num_hidden_layers + 1, "all_gather": 1}] * 2
