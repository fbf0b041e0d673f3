"""Samples are the same on every machine, cover every value, and no two factors walk in step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import cases, sampled, small_first

SMALL = replace(find_op("linear"), factors={"T": (0, 1, 2, 3), "dtype": ("bfloat16", "float32")}, settle=dict)
PINNED = ["76fc79fc", "7c8934ee", "1157ab87"]


def test_a_sample_is_the_same_for_ever() -> None:
    assert [case.id for case in sampled(SMALL, 3)] == PINNED


def test_a_sample_continues_where_another_stops(op_name: str) -> None:
    op = find_op(op_name)
    assert sampled(op, 6, start=4) == sampled(op, 10)[-6:]


def test_every_value_of_every_factor_occurs() -> None:
    found = sampled(SMALL, 4)
    assert {case["T"] for case in found} == {0, 1, 2, 3}
    assert {case["dtype"] for case in found} == {"bfloat16", "float32"}


def test_factors_of_one_size_are_dealt_apart(op_name: str) -> None:
    op = find_op(op_name)
    found = sampled(op, 60)
    in_step = [
        (a, b)
        for i, a in enumerate(op.factors)
        for b in list(op.factors)[i + 1 :]
        if len(op.factors[a]) == len(op.factors[b]) > 1
        and len({(case[a], case[b]) for case in found}) <= len(op.factors[a])
        and len({case[a] for case in found}) == len(op.factors[a]) == len({case[b] for case in found})
    ]
    assert in_step == [], "these factors take every value together with one value of the other"


@settings(max_examples=20)
@given(data=st.data())
def test_drawn_cases_hold_what_is_fixed(data: st.DataObject) -> None:
    case = data.draw(cases(find_op("linear"), dtype="float16"))
    assert case["dtype"] == "float16"
    assert case.op == "linear"


def test_an_unknown_factor_cannot_be_fixed() -> None:
    with pytest.raises(ValueError, match="op linear has no factor 'experts'"):
        cases(find_op("linear"), experts=1)


def test_small_cases_come_first_and_empty_ones_last() -> None:
    op = find_op("linear")
    drawn = [op.case(T=T, H=64) for T in (17, 0, 1, 2)]
    assert [case["T"] for case in small_first(op, drawn)] == [1, 2, 17, 0]
