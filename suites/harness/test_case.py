"""A case is a small recipe whose text and id never change."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_m2.harness.case import LARGEST_JSON, Case
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled

RECIPE: dict[str, int | str] = {"op": "routing", "T": 3, "E": 8, "K": 2, "regime": "normal", "seed": 7}


def test_the_id_is_the_same_for_ever() -> None:
    assert Case(RECIPE).id == "1c60f62c"


def test_order_of_fields_does_not_matter() -> None:
    backwards = Case(dict(reversed(RECIPE.items())))
    assert (backwards, backwards.id, hash(backwards)) == (Case(RECIPE), Case(RECIPE).id, hash(Case(RECIPE)))


def test_json_reads_back() -> None:
    case = Case(RECIPE)
    assert Case.from_json(case.json) == case
    assert case.json == '{"E":8,"K":2,"T":3,"op":"routing","regime":"normal","seed":7}'


def test_one_field_changed_is_another_case() -> None:
    assert Case(RECIPE).but(T=4) != Case(RECIPE)
    assert Case(RECIPE).but(T=4).number("T") == 4


def test_every_sampled_case_is_small_and_distinct(op_name: str) -> None:
    found = sampled(find_op(op_name), 100)
    assert max(len(case.json) for case in found) < LARGEST_JSON
    assert len({case.id for case in found}) == len(found)


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"T": 3}, "names no op"),
        (RECIPE | {"scale": 1.5}, "scale=1.5 is a float"),
        (RECIPE | {"renormalize": True}, "renormalize=True is a bool"),
        (RECIPE | {"note": "x" * 400}, "the limit is 400"),
    ],
)
def test_what_is_no_recipe_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Case(fields)


@pytest.mark.parametrize("text, complaint", [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_what_is_no_json_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Case.from_json(text)


def test_a_missing_or_mistyped_field_is_named() -> None:
    with pytest.raises(KeyError, match="has no field"):
        Case(RECIPE).number("H")
    with pytest.raises(ValueError, match="regime='normal'"):
        Case(RECIPE).number("regime")
    with pytest.raises(ValueError, match="T=3"):
        Case(RECIPE).word("T")


def test_an_op_refuses_a_field_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="op linear has no case field 'experts'"):
        find_op("linear").case(experts=8)
