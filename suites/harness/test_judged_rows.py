"""Large outputs are judged by rows: those that are chosen, what becomes of the arguments, what every row must show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import judged_rows
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.judged_rows import FEWEST, MOST, chosen_rows, judged
from minimax_m2.harness.op import Op, all_ops, by_row, find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.relation import placed
from minimax_m2.harness.verdict import Outcome

BY_ROW = [op.name for op in all_ops().values() if op.rows is not None]
SMALL: dict[str, dict[str, Field]] = {
    "experts": {"E": 16, "K": 4, "H": 64, "I": 32, "active": 16}, "router": {"E": 16, "H": 33}, "routing": {"E": 16},
    "attention": {"B": 3, "S": 17, "queries": "more", "pad": 3},
}  # fmt: skip


def rows_of(op: Op) -> dict[str, Field]:
    """Fields of a small case of 23 rows and more."""
    return SMALL.get(op.name, {}) | ({"T": 23} if "T" in op.factors else {})


def made(op: Op, case: Case) -> tuple[dict[str, Any], Outputs]:
    """A case's arguments, and what plain torch returns for them."""
    given, provider = op.inputs(case, Bits(case)), plain()
    function = provider.functions(op.name)
    assert function is not None
    value = op.bind(function, placed(given, provider))()
    return given, value if isinstance(value, tuple) else (value,)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six rows of any op."""
    monkeypatch.setattr(judged_rows, "MOST", 6)


@pytest.mark.parametrize("name", BY_ROW)
def test_rows_hang_on_what_is_left_of_the_arguments_alone(name: str) -> None:
    op = find_op(name)
    case = op.case(**rows_of(op), seed=3)
    given, outputs = made(op, case)
    outcome, evidence, found = judged(op, case, {}, given, outputs)
    assert outcome is Outcome.PASS, evidence
    assert {c.elements for c in found} == {6 * output[0].numel() for output in outputs}


@pytest.mark.parametrize("name", BY_ROW)
def test_a_wrong_row_among_those_judged_is_told(name: str) -> None:
    op = find_op(name)
    case = op.case(**rows_of(op), seed=3)
    given, outputs = made(op, case)
    outputs[0].view(torch.uint8)[-1] ^= 0x44
    outcome, evidence, _ = judged(op, case, {}, given, outputs)
    assert outcome is Outcome.WRONG
    assert evidence.endswith("of 6 rows judged")


def test_a_row_that_nobody_wrote_is_told_wherever_it_is() -> None:
    op = find_op("swiglu")
    case = op.case(T=23)
    given, outputs = made(op, case)
    outputs[0][11].view(torch.uint8).fill_(0xFF)
    assert judged(op, case, {}, given, outputs)[:2] == (
        Outcome.WRONG, "row 11 of output 0 was not written, of 1 such rows",
    )  # fmt: skip


def test_an_output_of_too_few_rows_is_told() -> None:
    op = find_op("swiglu")
    case = op.case(T=23)
    given, outputs = made(op, case)
    assert judged(op, case, {}, given, (outputs[0][:22],))[0] is Outcome.WRONG_SHAPE


def test_what_is_small_is_judged_whole() -> None:
    op = find_op("swiglu")
    case = op.case(T=FEWEST)
    given, outputs = made(op, case)
    assert chosen_rows(op, case, given) is None
    outputs[0][1] += 1
    assert judged(op, case, {}, given, outputs)[0] is Outcome.WRONG


def test_the_first_and_the_last_row_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_rows, "MOST", MOST)
    rows = chosen_rows(find_op("swiglu"), find_op("swiglu").case(T=300), {})
    assert rows is not None
    assert (int(rows[0]), int(rows[-1]), len(rows.unique())) == (0, 299, MOST)


def test_rows_of_many_operations_are_fewer() -> None:
    op = find_op("linear")
    wide = op.case(T=300).but(N=8192, H=131072)
    rows = chosen_rows(op, wide, {})
    assert rows is not None
    assert len(rows) == FEWEST


def test_a_batch_with_padding_is_judged_whole() -> None:
    op = find_op("routing")
    case = op.case(T=65, valid=1)
    assert chosen_rows(op, case, op.inputs(case, Bits(case))) is None


def test_experts_that_no_row_needs_are_left_out() -> None:
    op = find_op("experts")
    case = op.case(E=16, K=2, active=16, T=65)
    given = op.inputs(case, Bits(case))
    rows = torch.tensor([0, 7])
    assert op.rows is not None
    taken = op.rows(given, rows)
    used = given["ids"][rows].unique()
    assert len(taken["packed"].arguments["w13"]) == len(used)
    weights: Tensor = taken["packed"].arguments["w2"][taken["ids"].long()]
    assert torch.equal(weights, given["packed"].arguments["w2"][given["ids"][rows].long()])


def test_arguments_that_are_absent_stay_so() -> None:
    given = {"x": torch.arange(4), "x_scale": None, "eps": 1}
    taken = by_row("x", "x_scale")(given, torch.tensor([2, 0]))
    assert taken["x"].tolist() == [2, 0]
    assert (taken["x_scale"], taken["eps"]) == (None, 1)
