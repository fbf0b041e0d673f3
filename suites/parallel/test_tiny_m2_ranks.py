"""A trained model reads text over ranks as it does on one, each rank from its own slices of the FP8 checkpoint."""

from __future__ import annotations

import pytest

from minimax_m2.harness.language import eval_windows, language_score
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.parallel import another_order
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_loading import load_shard
from minimax_m2.reference.weights import Checkpoint

FOLDER = tiny_m2()
LENGTH = 64


@pytest.mark.skipif(FOLDER is None, reason="not here: suites/data/tiny-m2 is in the checkout")
@pytest.mark.parametrize("layout", [Layout(tp=4), Layout(tp=3, ep=3), Layout(tp=8, ep=8, dispatch="all_to_all")])
def test_the_cross_entropy_is_that_of_one_rank(layout: Layout) -> None:
    assert FOLDER is not None
    folder = FOLDER
    ids = eval_windows(folder, windows=1, length=LENGTH)
    whole = MiniMaxM2.from_pretrained(folder)
    expected = whole(ids)

    def rank_main(communicator: Communicator) -> float:
        own = Layout(tp=layout.tp, ep=layout.ep, dispatch=layout.dispatch, rank=communicator.rank)
        checkpoint = Checkpoint(folder)
        weights = load_shard(checkpoint, own, expected.dtype)
        logits = MiniMaxM2(checkpoint.config, weights, communicator=communicator, layout=own)(ids)
        return language_score(logits, expected, ids).cross_entropy

    truth = language_score(expected, expected, ids).cross_entropy
    # log-sum-exp moves no further than the logits, and the true token's logit once more.
    slack = 2 * another_order(whole.config) * float(expected.abs().max())
    assert all(abs(found - truth) < slack for found in Threads(layout.world).run(rank_main))
