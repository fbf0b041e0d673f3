"""A model whose norms and rotation sum over the ranks themselves is the model of one rank."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.fused_sums import FusedSums, Places, SummingNorm, SummingRope
from minimax_m2.harness.parallel import CONFIGS, Split, difference_of, rank_outcome
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.harness.relay import Ledger, Sent
from minimax_m2.reference.add_rms_norm import add_rms_norm
from minimax_m2.reference.communicator import Communicator, Single, Threads
from minimax_m2.reference.linear import linear
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.qk_norm_rope import qk_sum_squares
from minimax_m2.reference.qk_norm_rope_cache import qk_norm_rope_cache
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.table import op_table

WHOLE = Split(config="groups of 3", tp=2, tokens=((2, 5),))
SPLITS = [
    WHOLE,
    Split(config="groups of 3", tp=3, tokens=((2, 5),)),
    Split(config="groups of 3", tp=8, tokens=((1, 4),)),
    Split(config="groups of 3", tp=2, dp=2, ep=4, tokens=((2, 3), (1, 0))),
    Split(config="heads alone", tp=2, dp=2, widths="pad", tokens=((1, 1), (2, 4))),
    Split(config="groups of 3", tp=2, tokens=((1, 0),)),
]


def summing(communicator: Communicator, layout: Layout) -> dict[str, Any]:
    """Ops that sum over the ranks which share heads; no mailbox holds a row, so each sum is a collective."""
    line = communicator.grid((layout.dp, layout.tp))[1]
    box = SimpleNamespace(rows=0)
    rest: dict[str, Any] = {"fused": None, "box": box, "ranks": line, "places": Places(1 << 24)}
    return {
        "add_rms_norm": SummingNorm(add_rms_norm, **rest),
        "qk_norm_rope_cache": SummingRope(qk_norm_rope_cache, sums=qk_sum_squares, **rest),
    }


def difference(split: Split, ops: Any = summing, **parts: Any) -> str:
    """How the ranks' outcomes differ from one rank's, or nothing."""

    def rank_main(rank: Communicator) -> str:
        found = rank_outcome(split, rank, ops=partial(ops, rank), **parts)
        return difference_of(split, rank.rank, found)

    told = Threads(split.tp * split.dp, timeout_s=20).run(rank_main)
    return next((text for text in told if text), "")


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_ops_that_sum_over_ranks_leave_a_model_what_it_is(split: Split) -> None:
    assert difference(split) == ""


def test_one_of_the_two_may_sum_and_the_other_not() -> None:
    for name in ("add_rms_norm", "qk_norm_rope_cache"):
        assert difference(WHOLE, lambda rank, layout, name=name: {name: summing(rank, layout)[name]}) == ""


@pytest.mark.parametrize("name", ["add_rms_norm", "qk_norm_rope_cache"])
def test_an_op_that_says_it_sums_and_does_not_is_caught(name: str) -> None:
    @dataclasses.dataclass
    class Idle:
        op: Any
        sums_over: int = 2

        def __call__(self, *given: Any, label: str, counted_kv_heads: int | None = None, **more: Any) -> Any:
            return self.op(*given, **more)

    plain = {"add_rms_norm": add_rms_norm, "qk_norm_rope_cache": qk_norm_rope_cache}[name]
    assert "logits differs" in difference(WHOLE, lambda rank, layout: {name: Idle(plain)})


def test_an_op_that_sums_and_does_not_say_it_is_caught() -> None:
    def twice(rank: Communicator, layout: Layout) -> dict[str, Any]:
        def op(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
            return add_rms_norm(rank.all_reduce(x), residual, weight, eps=eps)

        return {"add_rms_norm": op}

    assert "logits differs" in difference(WHOLE, twice)


@pytest.mark.parametrize("tokens", [3, 0])
def test_a_layer_calls_no_collective_for_what_its_ops_sum(tokens: int) -> None:
    split = dataclasses.replace(WHOLE, tokens=((1, tokens),))

    def labels(rank: Communicator) -> set[str]:
        entries: list[Sent] = []
        rank_outcome(split, rank, ops=partial(summing, rank), relay=partial(Ledger, entries=entries))
        return {entry.label for entry in entries}

    assert Threads(2).run(labels) == [{"embedding", "logits"}] * 2


def model(layout: Layout, *, ops: Any = None, layer_ops: Any = None) -> MiniMaxM2:
    """Rank 0 of a layout that nobody runs."""
    config = CONFIGS["groups of 3"]
    alone: Any = SimpleNamespace(rank=0, size=layout.world, grid=lambda shape: [Single(), Single()])
    weights = shard(random_weights(config, seed=9), config, layout)
    return MiniMaxM2(config, weights, communicator=alone, layout=layout, ops=ops, layer_ops=layer_ops)


def norm_over(ranks: int) -> Any:
    return SummingNorm(add_rms_norm, None, None, SimpleNamespace(size=ranks), Places(9))  # type: ignore[arg-type]


class Reducing:
    """A projection that sums by itself."""

    reduces = True

    def __call__(self, x: Tensor, weight: Tensor, **more: Any) -> Tensor:
        return linear(x, weight, **more)


REFUSED: list[tuple[Layout, dict[str, Any], str]] = [
    (Layout(tp=2), {"ops": {"add_rms_norm": norm_over(4)}}, r"sums over 4 ranks itself, .* tp=2"),
    (Layout(tp=2), {"layer_ops": {1: op_table({"add_rms_norm": norm_over(2)})}}, "norms sum over 0 and 2 ranks"),
    (Layout(tp=2), {"ops": {"add_rms_norm": norm_over(2), "linear": Reducing()}}, "the norm after it would again"),
    (
        Layout(tp=1, dp=5, ep=5, dispatch="all_to_all"),
        {"ops": {"add_rms_norm": norm_over(1)}},
        "would add them twice",
    ),
]


@pytest.mark.parametrize(
    ("layout", "given", "told"), REFUSED, ids=["other ranks", "some layers", "o_proj sums too", "all to all"]
)
def test_sums_that_would_be_left_out_or_done_twice_are_refused(
    layout: Layout, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        model(layout, **given)


def test_what_is_never_there_as_a_whole_is_not_tapped() -> None:
    def steps(rank: Communicator, ops: Any) -> set[str]:
        config, layout, seen = CONFIGS["groups of 3"], Layout(tp=2, rank=rank.rank), set[str]()
        weights = shard(random_weights(config, seed=9), config, layout)
        found = MiniMaxM2(config, weights, communicator=rank, layout=layout, ops=ops(rank, layout))
        found(torch.arange(3), tap=lambda step, layer, output: seen.add(step))
        return seen

    plain, _ = Threads(2).run(lambda rank: steps(rank, lambda rank, layout: None))
    summed, _ = Threads(2).run(lambda rank: steps(rank, summing))
    assert plain - summed == {"o_proj", "experts"}


@pytest.mark.parametrize(
    ("ranks", "told"), [(1, "one rank has nobody to sum with"), (2, "has no GPUs that see each other's memory")]
)
def test_ranks_without_gpus_are_refused(ranks: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
    monkeypatch.setattr("minimax_m2.kernels.gpu.toolkit.compiler", lambda: "nvcc")
    config = dataclasses.replace(CONFIGS["groups of 3"])
    with pytest.raises(ValueError, match=told):
        Threads(ranks).run(lambda rank: FusedSums(op_table(), rank, config))


def test_without_a_compiler_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
    monkeypatch.setattr("minimax_m2.kernels.gpu.toolkit.compiler", lambda: None)
    with pytest.raises(ValueError, match="no nvcc"):
        Threads(2).run(lambda rank: FusedSums(op_table(), rank, CONFIGS["groups of 3"]))
