"""One formula, three readings; and corruptions that apply where they are an error at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.expectation import Tensors, call_reference, corrupted, expectation, noticeable
from minimax_m2.harness.op import Op, Pack, find_op
from minimax_m2.harness.sampling import sampled
from minimax_m2.reference.contract import EXACT

# Caches hold what was stored; attention's masked rows and the delta rule's heads multiply in another order. These agree
# once they are rounded.
ROUNDED_INSIDE = ("attention", "gated_delta_rule", "gdn_update", "kv_cache", "qk_norm_rope_cache")


def wide(op: Op, value: Any) -> Any:
    if isinstance(value, Pack):
        return getattr(op.module, value.function)(**{k: wide(op, v) for k, v in value.arguments.items()})
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_the_budgeted_reading_has_the_values_of_the_oracle(op_name: str) -> None:
    op = find_op(op_name)
    for case in sampled(op, 12):
        right = expectation(op, case, op.full_contract(case, {}))
        if not isinstance(right, Tensors):
            pytest.skip(f"{op_name} is judged as a choice")
        oracle = call_reference(op, {k: wide(op, v) for k, v in op.inputs(case, Bits(case)).items()}, EXACT)
        for (name, expected), exact in zip(right.expected.items(), oracle, strict=True):
            value = expected if isinstance(expected, Tensor) else expected.value
            if op_name in ROUNDED_INSIDE:
                value, exact = value.to(right.dtypes[name]).double(), exact.to(right.dtypes[name]).double()
            assert torch.equal(value.nan_to_num(0.25), exact.to(value.dtype).nan_to_num(0.25)), f"{name} {case.json}"


def test_a_perfect_answer_passes(op_name: str) -> None:
    op = find_op(op_name)
    for case in sampled(op, 12):
        right = expectation(op, case, op.full_contract(case, {}))
        assert all(found.passed for found in right.judge(right.perfect())), case.json


def kinds(right: Tensor) -> list[str]:
    return [kind for kind, wrong in corrupted(right) if noticeable(wrong, right)]


def test_corruptions_apply_where_they_are_errors() -> None:
    x = torch.arange(1.0, 129.0).view(2, 64)
    assert kinds(x) == ["zeros", "rows", "row", "gain", "tile"]
    assert kinds(torch.zeros(2, 64)) == []
    assert "rows" not in kinds(torch.ones(2, 64))
    assert "gain" not in kinds(torch.ones(2, 4))
    assert "code" in kinds(torch.ones(2, 4, dtype=torch.int32))
    assert kinds(torch.ones(0, 4)) == []


def test_a_change_below_a_part_in_256_is_nobodys_error() -> None:
    x = torch.ones(1, 64)
    assert not noticeable(x * (1 + 1 / 512), x)
    assert noticeable(x * (1 + 1 / 128), x)
