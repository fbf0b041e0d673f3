"""What holds for every op, provider and device: one parametrised function a property.

``pytest --pyargs minimax_m2.harness.conformance --provider FILE -m cpu`` runs it on anybody's kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import event, given, reject, target

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import expected, judge, repeat
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.sampling import cases, sampled, small_first
from minimax_m2.harness.verdict import Outcome, Verdict

SAMPLE = 60
# A tenth of the drawn cases may be too small to judge anybody; a blind budget is blind in nearly all.
MOST_VACUOUS = 0.1


def check(case: Case, provider: Provider, cell: Cell) -> float | None:
    """Judge one case: its utilisation, or None where it is unsupported; see ``demand``."""
    verdict = judge(case, provider, cell.variant)
    return None if verdict.outcome is Outcome.UNSUPPORTED else demand(verdict, provider)


def demand(verdict: Verdict, provider: Provider) -> float:
    """The utilisation of a pass; any other verdict is an AssertionError that says all there is to say."""
    if not verdict.passed:
        raise AssertionError(verdict.explain(provider.source))
    return verdict.utilisation


def test_sampled_cases_are_right(cell: Cell, provider: Provider, executed: Callable[[Cell], None]) -> None:
    op = find_op(cell.op)
    # Small first: what a kernel keeps of its first call is then too small for the others.
    verdicts = [judge(case, provider, cell.variant) for case in small_first(op, sampled(op, SAMPLE))]
    judged = [verdict for verdict in verdicts if verdict.outcome is not Outcome.UNSUPPORTED]
    if not judged:
        pytest.skip(f"{cell.id}: none of {SAMPLE} sampled cases could be judged")
    executed(cell)
    for verdict in judged:
        demand(verdict, provider)


def test_drawn_cases_are_right(cell: Cell, provider: Provider) -> None:
    op, drawn, vacuous = find_op(cell.op), Counter[bool](), Counter[str]()

    @given(case=cases(op))
    def judge_one(case: Case) -> None:
        unnoticed = expected(op, case, {})[1]
        drawn[bool(unnoticed)] += 1
        if unnoticed:
            # A drawn case may be too small to judge anybody; that sampled ones are not is held below.
            vacuous.update(unnoticed)
            event("vacuous")
            reject()
        utilisation = check(case, provider, cell)
        if utilisation is None:
            event("unsupported")
        else:
            target(min(utilisation, 1.0), label=f"utilisation of {cell.op}")

    judge_one()
    few = drawn[True] <= MOST_VACUOUS * drawn.total()
    assert few, f"VACUOUS {cell.op}: {drawn[True]} of {drawn.total()} drawn cases let pass {dict(vacuous)}"


def test_no_tokens_give_empty_outputs(cell: Cell, provider: Provider) -> None:
    op = find_op(cell.op)
    if "T" not in op.factors:
        pytest.skip(f"{cell.op} has no token dimension")
    for case in sampled(op, 8):
        check(op.case(**{k: v for k, v in case.items() if k != "op"} | {"T": 0}), provider, cell)


def test_a_second_call_gives_the_same_bits(cell: Cell, provider: Provider) -> None:
    op = find_op(cell.op)
    taken = [case for case in sampled(op, 12) if provider.refuses(op, case) is None]
    if not taken:
        pytest.skip(f"{cell.id}: {provider.name} refuses all of 12 sampled cases")
    for case in taken:
        assert repeat(case, provider, cell.variant), f"{cell.id} gives other bits when called again: {case.json}"


def test_every_corruption_is_noticed_and_applies_somewhere(op_name: str) -> None:
    op, due, applied = find_op(op_name), set[str](), Counter[str]()
    for case in sampled(op, SAMPLE):
        right, unnoticed = expected(op, case, {})
        assert not unnoticed, f"VACUOUS {case.json}: {unnoticed}"
        due |= right.kinds
        applied.update(kind.split(":")[1] for kind, _ in right.corruptions())
    missing = due - set(applied)
    assert due, f"VACUOUS {op_name}: no case was drawn"
    assert not missing, f"VACUOUS {op_name}: no sampled case lets the corruption {sorted(missing)} apply"
