"""Contracts offer what engines do, with the engine's file beside it; draws reach the sizes that kernels broke at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import MANY_ROWS, all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.verdict import Outcome

SOURCE = re.compile(r"[A-Za-z][\w-]*:[\w./-]+\.(py|cu|cuh|cpp|h)")


@pytest.mark.parametrize("name", all_ops())
def test_every_choice_names_the_engine_and_file_that_makes_it(name: str) -> None:
    named = [
        (field, value, source) for field, found in find_op(name).choices.items() for value, source in found.items()
    ]
    assert [choice for choice in named if not SOURCE.fullmatch(choice[2])] == []


@pytest.mark.parametrize("name", all_ops())
def test_every_choice_is_of_a_field_of_the_contract(name: str) -> None:
    op = find_op(name)
    assert set(op.choices) <= set(op.contract(op.case()))


@pytest.mark.parametrize("source", ["", "vLLM", "vLLM silu_and_mul", "csrc/layernorm_kernels.cu", "vLLM:csrc"])
def test_an_engine_without_a_file_is_no_source(source: str) -> None:
    assert SOURCE.fullmatch(source) is None


@pytest.mark.parametrize("op", ["routing", "router"])
@pytest.mark.parametrize("field", ["logits", "scores", "selection", "weights"])
def test_a_router_in_sixteen_bits_is_a_defect_and_no_choice(op: str, field: str) -> None:
    case = find_op(op).case(dtype="float32")
    with pytest.raises(ValueError, match=rf"{op}\.{field}='bfloat16' is not one that an engine has"):
        find_op(op).full_contract(case, {field: "bfloat16"})


def test_scores_may_take_the_dtype_of_their_logits() -> None:
    case = find_op("routing").case(dtype="bfloat16")
    assert find_op("routing").full_contract(case, {"scores": "dtype"})["scores"] == "bfloat16"


def stale_from(row: int, name: str) -> Provider:
    """Plain torch whose grid ends: rows from ``row`` on are never written."""
    right = plain().functions(name)

    def stale(*given: Any, **keywords: Any) -> Any:
        assert right is not None
        returned = right(*given, **keywords)
        for output in returned if isinstance(returned, tuple) else (returned,):
            output.view(torch.uint8)[row:] = 0
        return returned

    packs = {pack: plain().functions(pack) for pack in (f"pack_{name}",)}
    return Provider(name="stale", device="cpu", functions={name: stale, **packs}.get)


@pytest.mark.parametrize("name", [op.name for op in all_ops().values() if MANY_ROWS in op.factors.get("T", ())])
def test_a_grid_that_ends_at_1408_rows_is_caught(name: str) -> None:
    drawn = (case for case in sampled(find_op(name), 60) if case.get("rows", "none") == "none")
    case = next(case for case in drawn if case["T"] == MANY_ROWS)
    assert judge(case, plain()).passed
    assert judge(case, stale_from(1408, name)).outcome in (Outcome.WRONG, Outcome.RAISED)


@pytest.mark.parametrize("K", [3, 5, 6, 7, 12, 31])
def test_routing_meets_numbers_of_experts_that_are_no_power_of_two(K: int) -> None:
    assert K in {case["K"] for case in sampled(find_op("routing"), 60)}


STRIDED = [op for op in all_ops() if "gap" in find_op(op).factors and not op.startswith(("gated", "gdn", "qkvz"))]


@pytest.mark.parametrize("name", STRIDED)
def test_rows_begin_at_no_multiple_of_a_vector(name: str) -> None:
    assert 3 in {case["gap"] for case in sampled(find_op(name), 12)}


def test_experts_are_as_narrow_as_can_be_and_sequences_are_long() -> None:
    experts, attention = sampled(find_op("experts"), 60), sampled(find_op("attention"), 60)
    assert {1, 2} <= {case["I"] for case in experts}
    assert 1 in {case["H"] for case in experts}
    assert {257, 1025} <= {case["S"] for case in attention}


def test_a_contract_may_be_a_function_of_the_case() -> None:
    op = find_op("experts")

    def declared(case: Mapping[str, Any]) -> dict[str, Any]:
        return {"gate_up": None} if case["quant"] == "none" else {"activation": "e4m3"}

    plain = op.full_contract(op.case(quant="none"), declared)
    scaled = op.full_contract(op.case(quant="weights"), declared)

    assert (plain["gate_up"], plain["activation"]) == (None, "none")
    assert (scaled["gate_up"], scaled["activation"]) == ("float32", "e4m3")
