"""A verdict says what happened, where, by how much, and which command shows it again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import Comparison, Mismatch
from minimax_m2.harness.verdict import Outcome, Verdict, describe

CASE = Case({"op": "routing", "T": 3})
WORST = Mismatch((2, 5), 1.5, 1.25, 0.125)


def verdict(**more: object) -> Verdict:
    given = {
        "outcome": Outcome.WRONG,
        "op": "routing",
        "case": CASE,
        "provider": "ours",
        "device": "cpu",
        "variant": "",
    }
    return Verdict(**given | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", Outcome)
def test_nothing_but_a_pass_has_passed(outcome: Outcome) -> None:
    assert verdict(outcome=outcome).passed == (outcome is Outcome.PASS)


def test_a_cell_names_its_variant_where_it_has_one() -> None:
    assert verdict().cell == "routing/cpu/ours"
    assert verdict(variant="avx2").cell == "routing/cpu/ours/avx2"


def test_the_command_that_shows_it_again_names_provider_and_variant() -> None:
    assert verdict().replay() == f"m2check repro '{CASE.json}' --with ours"
    assert verdict(variant="avx2").replay("mine.py") == f"m2check repro '{CASE.json}' --provider mine.py --variant avx2"


def test_an_explanation_ends_in_that_command() -> None:
    found = verdict(evidence=("one", "two"))
    head = f"routing/cpu/ours  case {CASE}: wrong"
    assert found.explain().splitlines() == [head, "  one", "  two", f"  replay: {found.replay()}"]
    assert found.explain("mine.py").splitlines()[-1] == f"  replay: {found.replay('mine.py')}"


@pytest.mark.parametrize(
    "tests, worst, said",
    [
        (
            {"element": 2.0, "gain": 9.0},
            WORST,
            "y at [2, 5]: actual 1.5, expected 1.25, error 0.25, budget 0.125, 2 x budget",
        ),
        (
            {"element": 2.0},
            replace(WORST, limit=0.0),
            "y at [2, 5]: actual 1.5, expected 1.25, error 0.25, budget 0, must be equal",
        ),
        (
            {"element": 1.0, "mean": 1.75, "row": 1.5},
            WORST,
            "the mean square error of all elements is 1.75 x its limit",
        ),
        ({"element": 0.5, "mean": 1.0, "row": 1.5}, WORST, "the mean square error of one row is 1.5 x its limit"),
        ({"column": 3.0}, None, "the mean square error of one column is 3 x its limit"),
        ({"gain": 1.125}, WORST, "the error's projection on the reference (a wrong scale) is 1.12 x its limit"),
        ({"element": 2.0}, None, "y: element is 2 x its limit (mean z^2 1.75)"),
    ],
)
def test_a_failed_comparison_is_told_by_its_element_or_by_the_test_that_failed_most(
    tests: dict[str, float], worst: Mismatch | None, said: str
) -> None:
    told = describe(Comparison("y", tests, worst, 40, mean_z2=1.75))
    assert said in told
    assert told.endswith("(mean z^2 1.75)") == ("its limit" in said)


def test_notes_stand_for_the_comparison() -> None:
    assert describe(Comparison("ids", {"element": 2.0}, WORST, 9, notes=["one", "two"])) == "ids: one; two"
