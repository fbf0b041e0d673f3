"""Coverage counts pairs that met, and names what never did."""

from __future__ import annotations

from dataclasses import replace

from minimax_m2.harness.coverage import coverage
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled

SMALL = replace(find_op("linear"), factors={"T": (1, 2), "dtype": ("bfloat16", "float32")}, settle=dict)


def test_pairs_that_met_and_pairs_that_did_not_are_told_apart() -> None:
    cases = [SMALL.case(T=1, dtype="bfloat16"), SMALL.case(T=2, dtype="float32"), SMALL.case(T=2, dtype="bfloat16")]
    found = coverage(SMALL, cases)
    assert (found.met, found.declared, found.share) == (3, 4, 0.75)
    assert found.never == ((("T", 1), ("dtype", "float32")),)
    assert found.absent == ()


def test_a_value_that_no_case_has_is_absent_and_its_pairs_are_not_told_again() -> None:
    found = coverage(SMALL, [SMALL.case(T=1, dtype="bfloat16"), SMALL.case(T=2, dtype="bfloat16")])
    assert found.absent == (("dtype", "float32"),)
    assert found.never == ()
    assert found.met == 2
    found = coverage(SMALL, [SMALL.case(T=1, dtype="bfloat16"), SMALL.case(T=1, dtype="float32")])
    assert (found.absent, found.never) == ((("T", 2),), ())


def test_one_factor_alone_has_no_pairs_and_all_of_them_met() -> None:
    one = replace(SMALL, factors={"T": (1, 2)})
    found = coverage(one, [one.case(T=1)])
    assert (found.met, found.declared, found.share) == (0, 0, 1.0)


def test_the_cases_of_the_conformance_suite_hold_half_of_all_pairs(op_name: str) -> None:
    op = find_op(op_name)
    assert coverage(op, sampled(op, 60)).share > 0.5
