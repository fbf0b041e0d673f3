"""Tokens find their experts and come back; a rank without tokens says all that others wait for and computes nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.parallel import CONFIGS, Split, outcomes
from minimax_m2.harness.parallel_bench import layer_bytes
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.harness.relay import Ledger, Sent
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.exchange import Exchange
from minimax_m2.reference.experts import experts, pack_experts
from minimax_m2.reference.linear import linear
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.router import router
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard, shard_layer
from minimax_m2.reference.table import STEPS, op_table
from minimax_m2.reference.weights import LayerWeights, Weight

CONFIG = dataclasses.replace(CONFIGS["heads alone"], num_local_experts=12)
LAYER = random_weights(CONFIG, seed=4).layers[0]
WHOLE = Layout()


def dense(weight: Weight) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def combined(
    exchange: Exchange, layer: LayerWeights, x: Tensor, route: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:  # fmt: skip
    """What the experts of all ranks make of this rank's tokens."""
    packed = pack_experts(dense(layer.w13), dense(layer.w2))
    return exchange.experts(
        x, route, lambda rows, weights, ids: experts(rows, packed, weights, ids), tokens=exchange.tokens(x), layer=0
    )


def routed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Route each row by itself: a product of another number of rows may have other bits."""
    rows = [router(row, LAYER.gate, LAYER.e_score_correction_bias, top_k=3) for row in x.split(1)]
    return torch.cat([weights for weights, _ in rows]), torch.cat([ids for _, ids in rows])


def without_some(x: Tensor) -> tuple[Tensor, Tensor]:
    """Some slots have no expert, and hold NaN as a captured graph's padding may."""
    weights, ids = routed(x)
    is_left_out = (x[:, :3] * 1000).long() % 3 == 0
    return weights.masked_fill(is_left_out, torch.nan), ids.masked_fill(is_left_out, -1)


def over_ranks(layout: Layout, counts: list[int], route: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The result of each group's tokens one after the other, from every rank of the group, and one rank's."""
    tokens = torch.randn(sum(counts), CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = dataclasses.replace(LAYER, w13=dense(LAYER.w13).to(dtype), w2=dense(LAYER.w2).to(dtype))

    def rank_main(communicator: Communicator) -> Tensor:
        own = dataclasses.replace(layout, rank=communicator.rank)
        share = shard_layer(layer, CONFIG, own)
        return combined(Exchange(own, CONFIG, communicator), share, tokens.split(counts)[own.dp_rank], route)

    results = Threads(layout.world, timeout_s=60).run(rank_main)
    expected = combined(Exchange(WHOLE, CONFIG, Threads(1).run(lambda rank: rank)[0]), layer, tokens, route)
    by_place = [torch.cat(results[place :: layout.tp]) for place in range(layout.tp)]
    return torch.stack(by_place), expected.expand(layout.tp, -1, -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("route", [routed, without_some])
@pytest.mark.parametrize(
    "tp, counts", [(1, [5, 0]), (1, [3, 1, 0, 9]), (4, [7]), (2, [6, 1, 0]), (12, [5]), (1, [0, 0, 0])]
)
def test_dispatched_experts_have_the_bits_of_one_rank(
    tp: int, counts: list[int], route: Any, dtype: torch.dtype
) -> None:
    layout = Layout(tp=tp, dp=len(counts), ep=tp * len(counts), dispatch="all_to_all")
    actual, expected = over_ranks(layout, counts, route, dtype)
    assert torch.equal(actual, expected)


def test_a_sum_in_another_order_has_other_bits() -> None:
    actual, expected = over_ranks(Layout(dp=3, ep=3), [5, 4, 6], routed, torch.float32)
    assert not torch.equal(actual, expected)
    # derived: sums of 3 experts' rows, each rounded to 2^-24 twice, of rows of about the size of the largest
    assert torch.allclose(actual, expected, rtol=0, atol=8 * 2.0**-24 * float(expected.abs().max()))


SPLITS = {
    "TP4": Split(config="groups of 3", tp=4),
    "TEP4": Split(config="groups of 3", tp=4, ep=4),
    "DP2 TP2": Split(config="groups of 3", tp=2, dp=2, tokens=((1, 3), (2, 4))),
    "EP4": Split(
        config="groups of 3", tp=1, dp=4, ep=4, dispatch="all_to_all", tokens=((1, 3), (1, 1), (2, 2), (1, 5))
    ),
}
# By kind, a layer's collectives: the fused statistics and o_proj within a group of heads, and the experts' own.
LAYER_COLLECTIVES = {
    "TP4": {"all_reduce": 3},
    "TEP4": {"all_reduce": 3},
    "DP2 TP2": {"all_reduce": 3, "all_gather": 1, "reduce_scatter": 1},
    "EP4": {"all_to_all": 3},
}


def ledgers(split: Split) -> list[list[Sent]]:
    found: dict[int, list[Sent]] = {}

    def relay(communicator: Communicator) -> Communicator:
        return Ledger(communicator, found.setdefault(communicator.rank, []))

    outcomes(split, relay=relay)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize("name", SPLITS)
def test_a_layer_calls_its_collectives_and_no_other(name: str) -> None:
    for entries in ledgers(SPLITS[name]):
        of_layer = Counter(sent.kind for sent in entries if sent.label.endswith("of layer 1"))
        # Each rank ran three passes: all tokens at once, a prefill and a decode.
        assert {kind: count / 3 for kind, count in of_layer.items()} == LAYER_COLLECTIVES[name]
        statistics = [sent for sent in entries if sent.label == "q and k statistics of layer 1"]
        assert len(statistics) == (3 if SPLITS[name].tp > 1 else 0)


@pytest.mark.parametrize("name", SPLITS)
def test_ranks_without_tokens_call_the_same_collectives(name: str) -> None:
    split = SPLITS[name]
    nobody = dataclasses.replace(split, tokens=((1, 0),) * split.dp)
    kinds = [[(sent.kind, sent.label) for sent in entries] for entries in (*ledgers(split), *ledgers(nobody))]
    assert all(called == kinds[0] for called in kinds)


@pytest.mark.parametrize("name", SPLITS)
def test_a_layer_sends_the_bytes_that_the_formula_says(name: str) -> None:
    # One pass of as many tokens in every group, none of which needs padding.
    split = dataclasses.replace(SPLITS[name], tokens=((1, 4),) * SPLITS[name].dp)
    expected = layer_bytes(split.layout(0), 4, config=CONFIGS[split.config], itemsize=8)
    sent, said = Counter[str](), Counter[str]()
    for entries in ledgers(split):
        of_pass = [each for each in entries if each.label.endswith("of layer 1")][: len(expected)]
        for each, (kind, size) in zip(of_pass, expected.values(), strict=True):
            sent[each.kind] += each.bytes
            said[kind] += size
    # Added up over ranks: what a rank gives back depends on how many rows came to its experts.
    assert sent == said


def counting(calls: Counter[str]) -> dict[str, Any]:
    """The reference's ops, each call counted."""
    table = op_table()

    def counted(step: str) -> Any:
        def op(*given: Any, **keywords: Any) -> Any:
            calls[step] += 1
            return getattr(table, step)(*given, **keywords)

        return op

    return {step: counted(step) for step in STEPS if hasattr(table, step) and not step.startswith("pack_")}


def launches(split: Split) -> list[Counter[str]]:
    found = [Counter[str]() for _ in range(split.tp * split.dp)]
    outcomes(split, ops=lambda layout: counting(found[layout.rank]))
    return found


def test_a_rank_without_tokens_launches_nothing() -> None:
    assert launches(Split(config="groups of 3", tp=2, tokens=((1, 0),))) == [Counter(), Counter()]
    assert all(launches(Split(config="groups of 3", tp=2))[0][op] for op in ("attention", "experts", "lm_head"))


def test_a_rank_without_tokens_computes_what_others_send() -> None:
    busy, idle = launches(Split(config="heads alone", tp=1, dp=2, ep=2, dispatch="all_to_all", tokens=((2, 5), (1, 0))))
    assert set(idle) == {"experts"}
    assert busy["attention"] == 3 * CONFIGS["heads alone"].num_hidden_layers


def test_an_o_proj_that_reduces_cannot_be_skipped_for_an_empty_batch() -> None:
    def reducing(communicator: Communicator) -> Callable[..., Tensor]:
        def op(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
            y = linear(x, weight, **keywords)
            return communicator.all_reduce(y) if weight.shape[0] == config.hidden_size else y

        op.reduces = True  # type: ignore[attr-defined]
        return op

    split = Split(config="groups of 3", tp=2)
    config, weights = CONFIGS[split.config], random_weights(CONFIGS[split.config], seed=9)

    def rank_main(tokens: int) -> Callable[[Communicator], Tensor]:
        def main(communicator: Communicator) -> Tensor:
            layout = split.layout(communicator.rank)
            share = shard(weights, config, layout)
            model = MiniMaxM2(
                config, share, ops={"linear": reducing(communicator)}, communicator=communicator, layout=layout
            )
            return model(torch.arange(tokens))

        return main

    whole = MiniMaxM2(config, weights)(torch.arange(4))
    # derived: as parallel.another_order, for sums of 192 terms in 3 layers
    assert torch.allclose(Threads(2).run(rank_main(4))[0], whole, rtol=0, atol=1e-12 * float(whole.abs().max()))
    with pytest.raises(ValueError, match=r"layer 0: o_proj reduces over the ranks itself, so a rank without tokens"):
        Threads(2).run(rank_main(0))


def test_weights_of_another_layout_are_refused_by_name() -> None:
    config = CONFIGS["small"]
    with pytest.raises(ValueError, match=r"embed_tokens has shape \[17, 16\]; rank . of tp=2, dp=1, ep=1"):
        Threads(2).run(lambda rank: MiniMaxM2(config, random_weights(config, seed=1), communicator=rank))


def test_a_communicator_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="the communicator is rank 0 of 2, the layout rank 0 of 4"):
        Threads(2).run(lambda rank: Exchange(Layout(tp=4), CONFIG, rank))
