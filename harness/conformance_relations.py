"""What holds for every op, provider and device: relations between calls, calls that are exact, all numbers of a format.

``pytest --pyargs minimax_m2.harness.conformance_relations --provider FILE -m cpu`` runs it on anybody's kernels.
"""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.exact import RECIPES, mismatch
from minimax_m2.harness.exhaustive import functions_of, histograms
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import Standing, relate, relations_of
from minimax_m2.harness.sampling import sampled

SAMPLE = 3
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def test_relations_hold(cell: Cell, provider: Provider) -> None:
    op, told = find_op(cell.op), []
    for relation in relations_of(op.name):
        for case in sampled(op, SAMPLE):
            finding = relate(relation, op, case, provider, cell.variant)
            if finding.standing is Standing.BROKEN:
                told.append(f"{cell.id}: {relation.name}: {finding.evidence}\n  case {case.json}")
    assert not told, "\n".join(told)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_calls_give_the_only_right_result(cell: Cell, provider: Provider, dtype: torch.dtype) -> None:
    if cell.op not in RECIPES:
        pytest.skip(f"{cell.op} has no exact call")
    told = mismatch(cell.op, provider, Bits(Case({"op": cell.op, "seed": 0})), dtype, cell.variant)
    assert not told, f"{cell.id}: {told}"


def test_elementwise_functions_are_right_at_every_number(cell: Cell, provider: Provider) -> None:
    if not functions_of(cell.op):
        pytest.skip(f"{cell.op} computes no function of one number")
    wrong = [one for one in histograms(provider, cell.op, cell.variant) if one.wrong]
    assert not wrong, "\n".join(f"{cell.id}: {one.name} of {one.dtype}: {one.wrong}" for one in wrong)
