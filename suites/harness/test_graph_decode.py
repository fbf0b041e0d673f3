"""A step of a fixed size computes what a step of the batch does, and its padding stores and moves nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from minimax_m2.harness.graph_decode import GraphDecoder, StaticStep
from minimax_m2.harness.parallel import CONFIGS, another_order
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard

CONFIG = CONFIGS["groups of 3"]
WEIGHTS = random_weights(CONFIG, seed=3)
LAYERS = range(CONFIG.num_hidden_layers + 1)


def far(layout: Layout, sequences: tuple[int, ...], rank: Communicator) -> float:
    """How far a rank's padded steps are from one rank's steps of its group's sequences, of the largest."""
    own = Layout(tp=layout.tp, dp=layout.dp, ep=layout.ep, rank=rank.rank, vocab_multiple=4)
    model = MiniMaxM2(CONFIG, shard(WEIGHTS, CONFIG, own), communicator=rank, layout=own)
    alone = MiniMaxM2(CONFIG, WEIGHTS)
    caches = [each.new_cache(tokens=[16] * 3, page_size=4) for each in (model, alone)]
    static = StaticStep(model, caches[0], sequences=3, max_seq_len=16, capture=LAYERS)
    mine = range(sequences[own.dp_rank])
    prompts = {s: torch.arange(2 + 3 * s) % CONFIG.vocab_size for s in mine}
    found = [0.0]
    for each, cache in zip((model, alone), caches, strict=True):
        each.prefill(prompts, cache)
    for turn in range(2):
        ids = torch.tensor([7 * s + turn for s in mine], dtype=torch.int64)
        batches = [cache.append(dict.fromkeys(mine, 1)) for cache in caches]
        logits = static.step(ids, batches[0])
        expected, states = alone.step(ids, batches[1], caches[1], rows=None, capture=LAYERS)
        pairs = [(logits, expected), *((static.states[key][: len(mine)], states[key]) for key in LAYERS)]
        found += [float((a - b).abs().max() / b.abs().max()) for a, b in pairs if len(b)]
    return max(found)


@pytest.mark.parametrize(
    ("layout", "sequences"),
    [
        (Layout(), (3,)),
        (Layout(), (2,)),
        (Layout(tp=2), (2,)),
        (Layout(dp=2), (3, 1)),
        (Layout(dp=2), (3, 0)),
        (Layout(dp=3, ep=3), (0, 0, 2)),
        (Layout(tp=2, dp=2, ep=2), (1, 3)),
    ],
    ids=str,
)
def test_padded_steps_are_the_steps_of_one_rank(layout: Layout, sequences: tuple[int, ...]) -> None:
    found = Threads(layout.world).run(lambda rank: far(layout, sequences, rank))
    assert max(found) <= another_order(CONFIG)


def test_padding_stores_nothing() -> None:
    model = MiniMaxM2(CONFIG, WEIGHTS)
    cache = model.new_cache(tokens=[8, 8], page_size=4)
    static = StaticStep(model, cache, sequences=3, max_seq_len=8)
    assert all(bool(x.isnan().all()) for x in (*cache.k, *cache.v))
    static.step(torch.tensor([5]), cache.append({0: 1}))
    assert [int((~x.isnan()).sum()) for x in cache.k] == [4 * 16] * CONFIG.num_hidden_layers


@pytest.mark.parametrize("sequences, tokens", [(2, 1), (1, 2), (1, 9)])
def test_a_batch_that_does_not_fit_is_refused(sequences: int, tokens: int) -> None:
    model = MiniMaxM2(CONFIG, WEIGHTS)
    cache = model.new_cache(tokens=[16] * 2, page_size=4)
    static = StaticStep(model, cache, sequences=1, max_seq_len=8)
    batch = cache.append(dict.fromkeys(range(sequences), tokens))
    with pytest.raises(ValueError, match="held: 1 sequences of one token and 8 keys"):
        static.step(torch.zeros(sequences, dtype=torch.int64), batch)


def test_the_table_of_angles_that_a_graph_reads_stays() -> None:
    model = MiniMaxM2(CONFIG, WEIGHTS)
    cache = model.new_cache(tokens=[8], page_size=4)
    static = StaticStep(model, cache, sequences=1, max_seq_len=8)
    table = weakref.ref(model.cos_sin(8))
    # A longer sequence elsewhere gives the model another one.
    model(torch.arange(60) % CONFIG.vocab_size)
    assert table() is not None
    del static
    assert table() is None


class OnPaper:
    """A graph without a GPU: what a call put out keeps its place, and a replay writes there and nowhere else."""

    def __init__(self, call: Callable[[], None]) -> None:
        call()
        self._owner, self._call = cast(Any, call).__self__, call
        self._out = self._owner.logits

    def replay(self) -> None:
        before = self._owner.logits, self._owner.states
        self._call()
        self._out.copy_(self._owner.logits)
        self._owner.logits, self._owner.states = before


def test_a_replay_returns_its_own_results_after_a_run_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimax_m2.harness.graph_decode.on_a_stream", lambda run: run())
    monkeypatch.setattr("minimax_m2.harness.graph_decode.captured", lambda run: (OnPaper(run), None))
    model = MiniMaxM2(CONFIG, WEIGHTS)
    caches = [model.new_cache(tokens=[8], page_size=4) for _ in range(2)]
    decoder = GraphDecoder(model, caches[0], sequences=1, max_seq_len=8)
    for token in range(3):
        replayed = decoder.step(torch.tensor([token]), caches[0].append({0: 1})).clone()
        decoder.run()
        assert torch.equal(replayed, model.decode(torch.tensor([token]), caches[1], sequences=[0]))
