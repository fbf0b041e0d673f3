"""A card holds what a case can ask, and a provider that breaks a level is told by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.determinism import card
from minimax_m2.harness.devices import TORCH_DEVICES
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.run import planned, run

CALLS = iter(range(1000))


def of(function: Callable[..., Any], case: Case, elsewhere: Sequence[Provider] = ()) -> dict[str, str]:
    return {level[:2]: level[2] for level in card(case, named(function, case), "", elsewhere).split()}


def named(function: Callable[..., Any], case: Case) -> Provider:
    return from_object(SimpleNamespace(**{case.op: function}), name="control")


def differs_again(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps) + next(CALLS)


def knows_its_row(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps) + torch.arange(len(x))[:, None].to(x.dtype)


def knows_its_width(x: Tensor, weight: Tensor, **more: Any) -> Tensor:
    return right("linear")(x, weight, **more) + len(weight)


def test_a_result_that_differs_again_keeps_no_level() -> None:
    case = find_op("rms_norm").case(T=3, H=64)
    assert set(of(differs_again, case, [named(right("rms_norm"), case)]).values()) == {"-"}


def test_a_result_that_knows_its_row_loses_the_batch() -> None:
    assert of(knows_its_row, find_op("rms_norm").case(T=3, H=64)) == {"D0": "+", "D1": "+", "D2": "-", "D5": "?"}


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


def raises(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("elsewhere", "mark"),
    [((), "?"), ((right("rms_norm"),), "+"), ((right("rms_norm"), knows_its_row), "-"), ((raises,), "-")],
    ids=("one device", "the same bits", "other bits on one of two", "no result"),
)
def test_other_devices_are_asked_where_there_are_any(elsewhere: Sequence[Callable[..., Any]], mark: str) -> None:
    case = find_op("rms_norm").case(T=3, H=64)
    found = of(right("rms_norm"), case, [named(function, case) for function in elsewhere])
    assert found["D5"] == mark


def test_who_refuses_a_case_or_lacks_the_op_elsewhere_says_nothing() -> None:
    case = find_op("rms_norm").case(T=3, H=64)
    refuses = replace(named(knows_its_row, case), refuses=lambda op, case: "never")
    lacks = named(right("swiglu"), find_op("swiglu").case())
    assert of(right("rms_norm"), case, [refuses, lacks])["D5"] == "?"


@pytest.mark.parametrize(
    ("name", "function", "mark"),
    [("control", right("rms_norm"), "+"), ("control", knows_its_row, "-"), ("another", knows_its_row, "?")],
)
def test_a_run_asks_the_provider_of_the_same_name_on_another_device(
    name: str, function: Callable[..., Any], mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other device is this CPU by another name."""
    monkeypatch.setitem(TORCH_DEVICES, "npu", "cpu")
    case = find_op("rms_norm").case()
    providers = [named(right("rms_norm"), case), replace(named(function, case), name=name, device="npu")]
    cell = next(cell for cell in planned(providers, ops=["rms_norm"]) if cell.device == "cpu")
    (found,) = (r.determinism for r in run(providers, chosen=[cell], count=8, name="one") if r.determinism)
    assert found.endswith(f"D5{mark}")


def test_a_card_is_of_a_case_that_lets_every_corruption_show() -> None:
    """The first sampled case of experts with rows routes none of them, so that every kernel gives the same zeros."""
    (graded,) = (r for r in run([plain()], ops=["experts"], count=5, name="one") if r.determinism)
    assert (graded.case["load"] != "none", graded.case["T"]) == (True, 2)
