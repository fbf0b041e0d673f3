"""A card holds what a case can ask, and a provider that breaks a level is told by it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.determinism import card
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain

CALLS = iter(range(1000))


def of(function: Callable[..., Any], case: Case) -> dict[str, str]:
    provider = from_object(SimpleNamespace(**{case.op: function}), name="control")
    return {level[:2]: level[2] for level in card(case, provider).split()}


def differs_again(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps) + next(CALLS)


def knows_its_row(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps) + torch.arange(len(x))[:, None].to(x.dtype)


def knows_its_width(x: Tensor, weight: Tensor, **more: Any) -> Tensor:
    return right("linear")(x, weight, **more) + len(weight)


def test_a_result_that_differs_again_keeps_no_level() -> None:
    assert set(of(differs_again, find_op("rms_norm").case(T=3, H=64)).values()) == {"-"}


def test_a_result_that_knows_its_row_loses_the_batch() -> None:
    assert of(knows_its_row, find_op("rms_norm").case(T=3, H=64)) == {"D0": "+", "D1": "+", "D2": "-"}


def test_a_result_that_knows_its_width_loses_the_ranks() -> None:
    assert of(knows_its_width, find_op("linear").case(T=3))["D4"] == "-"


@pytest.mark.parametrize("make", [plain, ours])
def test_a_case_without_rows_to_move_does_not_ask_for_the_batch(make: Callable[[], Provider]) -> None:
    provider = make()
    variant = provider.variants[0]
    assert "D2" not in card(find_op("rms_norm").case(T=1, H=64), provider, variant)
    assert "D2+" in card(find_op("rms_norm").case(T=3, H=64), provider, variant)


def test_variants_are_held_against_each_other() -> None:
    provider = ours()
    found = card(find_op("embedding").case(T=3), provider, provider.variants[0])
    assert ("D3+" in found) is (len(provider.variants_of("embedding")) > 1)
