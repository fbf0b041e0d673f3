"""What a contract may say instead of its default is what an engine does, and the engine's file stands beside it."""

from __future__ import annotations

import re

import pytest

from minimax_m2.harness.op import all_ops, find_op

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
