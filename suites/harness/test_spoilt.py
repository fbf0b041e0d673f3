"""Logits that are no numbers, or whose scores vanish: refused or passed on as such, never answered plausibly."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import function_of, plain
from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome, Verdict

ROUTING = find_op("routing")
CASE = ROUTING.case(T=8, E=16, K=4)


def right(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    function = function_of("routing")
    assert function is not None
    return function(logits, bias, **keywords)


def rows_of(logits: Tensor) -> Tensor:
    return logits.isnan().any(1)


def refuses(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    if bool(rows_of(logits).any()):
        raise ValueError(f"logits hold NaN in row {int(rows_of(logits).nonzero()[0])}")
    return right(logits, bias, **keywords)


def chooses_none(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias, **keywords)
    none = rows_of(logits)[:, None]
    return weights.nan_to_num(0.0), ids.masked_fill(none, -1)


def expert_zero(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias, **keywords)
    none = rows_of(logits)[:, None]
    return weights.masked_fill(none, 1 / keywords["top_k"]), ids.masked_fill(none, 0)


def takes_it_for_the_least(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    return right(logits.nan_to_num(-1e4), bias, **keywords)


def spreads(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias, **keywords)
    return weights + 0 * logits.sum(), ids


def points_outside(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias, **keywords)
    return weights, ids.masked_fill(rows_of(logits)[:, None], logits.shape[1])


def refuses_in_other_words(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
    if bool(rows_of(logits).any()):
        raise ValueError("bad input")
    return right(logits, bias, **keywords)


def judged(routing: Callable[..., Any], **more: Callable[..., Any]) -> Verdict:
    return judge(CASE, from_object(SimpleNamespace(routing=routing, **more), name="tried"))


@pytest.mark.parametrize("routing", [right, refuses, chooses_none])
def test_a_row_that_is_no_number_may_be_refused_passed_on_or_left_out(routing: Callable[..., Any]) -> None:
    assert all(v.passed for v in try_on("routing", routing, cases=60))


@pytest.mark.parametrize(
    "routing, outcome, told",
    [
        (expert_zero, Outcome.WRONG, "routing on NaN: token 0 has NaN among its scores, but ids [0, 0, 0, 0]"),
        (takes_it_for_the_least, Outcome.WRONG, "expected a NaN weight, ids of -1, or a ValueError that names NaN"),
        (spreads, Outcome.NOT_A_NUMBER, "routing on NaN: weights: token"),
        (points_outside, Outcome.WRONG, "ids [16, 16, 16, 16]"),
        (refuses_in_other_words, Outcome.RAISED, "routing on NaN raised ValueError: bad input"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_plausible_answer_to_what_is_no_number_is_told(
    routing: Callable[..., Any], outcome: Outcome, told: str
) -> None:
    verdict = judged(routing)
    assert (verdict.outcome, told in verdict.evidence[0]) == (outcome, True), verdict.explain()


@pytest.mark.parametrize("routing", [right, refuses])
def test_an_out_variant_is_held_to_it_too(routing: Callable[..., Any]) -> None:
    def into(logits: Tensor, bias: Tensor | None, weights: Tensor, ids: Tensor, **keywords: Any) -> None:
        for place, value in zip((weights, ids), expert_zero(logits, bias, **keywords), strict=True):
            place.copy_(value)

    assert judged(routing, routing_out=into).evidence[0].startswith("routing_out on NaN: token 0")


def test_a_router_is_held_to_it_by_its_hidden_states() -> None:
    router = function_of("router")
    assert router is not None

    def plausible(x: Tensor, weight: Tensor, bias: Tensor | None, **keywords: Any) -> Any:
        return router(x.nan_to_num(0.0), weight, bias, **keywords)

    assert all(v.passed for v in try_on("router", router, cases=20))
    assert "router on NaN" in try_on("router", plausible)[-1].evidence[0]


VANISHING = ROUTING.case(T=8, E=16, K=4, regime="underflow")


@pytest.mark.parametrize("weight", [float("nan"), 0.0, 0.25])
def test_scores_that_vanish_may_weigh_nothing_or_share_alike(weight: float) -> None:
    def guarded(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
        weights, ids = right(logits, bias, **keywords)
        return weights.masked_fill((logits < -150).any(1, keepdim=True), weight), ids

    assert try_on("routing", guarded, cases=[VANISHING])[-1].passed


@pytest.mark.parametrize("weight", [float("inf"), -0.5, 2.0])
def test_scores_that_vanish_never_weigh_more_than_all(weight: float) -> None:
    def unguarded(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
        weights, ids = right(logits, bias, **keywords)
        return weights.masked_fill((logits < -150).any(1, keepdim=True), weight), ids

    verdict = try_on("routing", unguarded, cases=[VANISHING])[-1]
    assert verdict.outcome is Outcome.WRONG
    assert "weights: token 2, whose scores may all be 0, has weights" in verdict.evidence[0]


def test_scores_that_vanish_still_choose_by_bias() -> None:
    def first_experts(logits: Tensor, bias: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor]:
        weights, ids = right(logits, bias, **keywords)
        ids[2] = ids.new_tensor(range(ids.shape[1]))
        return weights, ids

    assert "token 2 chose expert" in try_on("routing", first_experts, cases=[VANISHING])[-1].evidence[0]


@pytest.mark.parametrize("op", ["routing", "router"])
def test_our_kernels_refuse_it(op: str) -> None:
    provider, case = ours(), find_op(op).case(T=8, E=16, K=4)
    assert all(judge(case, provider, variant).passed for variant in provider.variants_of(op))
    assert judge(case, plain()).passed
