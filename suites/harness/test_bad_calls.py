"""Our kernels refuse bad calls of every op; a function that answers one, or refuses without a word, is told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bad_calls import FAR, BadCall, answered, answered_by_launches, bad_calls, bad_calls_of
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.conformance_bad_calls import SAMPLE
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.sampling import sampled


def test_our_kernels_refuse_bad_calls(op_name: str) -> None:
    op, provider = find_op(op_name), ours()
    variants = provider.variants_of(op_name)
    bad = list(bad_calls_of(op, sampled(op, SAMPLE)))
    told = [answered(found, op, provider, variants[i % len(variants)]) for i, found in enumerate(bad)]
    assert bad
    assert [text for text in told if text] == []


def adds_up_what_there_is(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps)


def refuses_without_a_name(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    raise ValueError("no")


def stumbles(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    raise KeyError("weight")


@pytest.mark.parametrize(
    "function, told",
    [
        (adds_up_what_there_is, "x in float64: gave numbers"),
        (refuses_without_a_name, "refused without the name of an argument"),
        (stumbles, "KeyError, expected ValueError or TypeError"),
    ],
)
def test_what_answers_a_bad_call_is_told(function: Callable[..., Any], told: str) -> None:
    op = find_op("rms_norm")
    first = next(bad_calls(op, op.case(T=2, H=64)))
    assert told in answered(first, op, from_object(SimpleNamespace(rms_norm=function), name="control"))


def bound_1_further(q: Tensor, k: Tensor, table: Tensor, positions: Tensor, **sizes: Any) -> Any:
    """Checks positions, but takes the number of rows for the last of them."""
    if int(positions.min()) < 0 or int(positions.max()) > len(table):
        raise ValueError("positions name no row of cos_sin")
    return right("rope")(q, k, table, positions.clamp(max=len(table) - 1), **sizes)


def last_goes_unchecked(q: Tensor, k: Tensor, table: Tensor, positions: Tensor, **sizes: Any) -> Any:
    """Checks every position but the last."""
    if not bool(((positions[:-1] >= 0) & (positions[:-1] < len(table))).all()):
        raise ValueError("positions name no row of cos_sin")
    return right("rope")(q, k, table, positions.clamp(max=len(table) - 1), **sizes)


@pytest.mark.parametrize(
    "function, defect",
    [(bound_1_further, "an index one too far"), (last_goes_unchecked, "a last index one too far")],
)
def test_an_index_just_outside_is_bad_wherever_it_stands(function: Callable[..., Any], defect: str) -> None:
    op = find_op("rope")
    (bad,) = (b for b in bad_calls(op, op.case(T=3)) if b.defect == defect)
    assert "gave numbers" in answered(bad, op, from_object(SimpleNamespace(rope=function), name="control"))


def faults_far_out(q: Tensor, k: Tensor, table: Tensor, positions: Tensor, **sizes: Any) -> Any:
    """Takes every position for an address."""
    if int(positions.max()) >= FAR:
        raise RuntimeError("an illegal memory access was encountered")
    return q, k


def test_of_launched_kernels_numbers_are_taken_for_a_bad_index_but_no_fault() -> None:
    op = find_op("rope")
    told = list(
        answered_by_launches(op, from_object(SimpleNamespace(rope=faults_far_out), name="control"), [op.case(T=3)])
    )
    assert "cos_sin a column too few: gave numbers" in told
    assert [text for text in told if " index " in text] == [
        "positions an index far out: RuntimeError, expected ValueError or TypeError: an illegal memory access was "
        "encountered"
    ]


def maps_without_a_look(ids: Tensor, *, num_experts: int, expert_map: Tensor | None, **more: Any) -> Any:
    """Takes an expert that its map sends past the local ones for the last of them."""
    local = None if expert_map is None else expert_map.clamp(max=num_experts - 1)
    return right("moe_align")(ids, num_experts=num_experts, expert_map=local, **more)


@pytest.mark.parametrize("name", ["experts", "moe_align"])
def test_a_map_that_sends_an_id_in_use_past_the_last_expert_is_bad(name: str) -> None:
    """Where the map has an entry that no id names, a kernel need not read it."""
    op = find_op(name)
    found = [b for b in bad_calls_of(op, sampled(op, SAMPLE)) if b.argument == "expert_map"]
    assert {b.defect for b in found} >= {"an index far out", "an index one too far"}
    if name == "moe_align":
        wrong = from_object(SimpleNamespace(moe_align=maps_without_a_look), name="control")
        (bad,) = (b for b in found if b.defect == "an index one too far")
        assert "expert_map an index one too far: gave numbers" in answered(bad, op, wrong)


def test_a_refusal_that_wrote_is_told() -> None:
    def kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
        k_cache.zero_()
        raise ValueError("slots is wrong")

    op = find_op("kv_cache")
    case = op.case(T=2)
    bad = BadCall("slots", "an index far out", op.inputs(case, Bits(case)))
    assert "k_cache was written" in answered(bad, op, from_object(SimpleNamespace(kv_cache=kv_cache), name="control"))


def test_sizes_that_only_a_reference_refuses_are_bad() -> None:
    op = find_op("rms_norm")
    found = {(bad.argument, bad.defect) for bad in bad_calls(op, op.case(T=2, H=64))}
    assert ("weight", "a column too few") in found
    assert all(isinstance(bad.arguments["x"], Tensor) for bad in bad_calls(op, op.case(T=2, H=64)))
    assert torch.float64 in {bad.arguments["x"].dtype for bad in bad_calls(op, op.case(T=2, H=64))}
