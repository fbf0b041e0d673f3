"""Exact calls have one right result: plain torch and ours give it to the bit, a dropped or exchanged element shows."""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.exact import COPIES, RECIPES, lacking, mismatch
from minimax_m2.harness.mutation import mutants
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SEEDS = (0, 1)


def bits(op_name: str, seed: int) -> Bits:
    return Bits(Case({"op": op_name, "seed": seed}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_plain_torch_gives_the_only_right_result(name: str, dtype: torch.dtype) -> None:
    assert [mismatch(name, plain(), bits(name, seed), dtype) for seed in SEEDS] == ["", ""]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_every_instruction_set_gives_the_only_right_result(name: str, dtype: torch.dtype) -> None:
    provider = ours()
    told = {variant: mismatch(name, provider, bits(name, 0), dtype, variant) for variant in provider.variants}
    assert {variant: text for variant, text in told.items() if text} == {}


@pytest.mark.parametrize("name", RECIPES)
def test_defects_of_an_output_show(name: str) -> None:
    op = find_op(name)
    planted = [m for m in mutants(op) if any(word in m.defect for word in ("a row off", "last column", "doubled"))]
    on_outputs = [m for m in planted if m.defect.split()[0] in op.outputs]
    unseen = [m.name for m in on_outputs if not mismatch(name, m.provider(), bits(name, 0), torch.float32)]
    assert set(unseen) <= UNSEEN


UNSEEN = {
    "add_rms_norm_quant: scale a row off",
    "router: weights a row off",
    "routing: weights a row off",
    "swiglu_quant: scale a row off",
}
"""Every routing weight is 1/8, and these scales are all the same."""


def test_every_op_has_an_exact_call_or_is_exact_or_transcendental() -> None:
    assert set(lacking(all_ops())) <= {"gdn_gating", "gated_delta_rule", "gdn_update"}
    assert not set(COPIES) & set(RECIPES)


def test_a_mismatch_names_element_and_both_values() -> None:
    wrong = next(m for m in mutants(find_op("linear")) if m.defect == "y doubled")
    assert "y at [0, 0]: actual" in mismatch("linear", wrong.provider(), bits("linear", 0), torch.float32)
