"""What a sum over ranks may lose follows from what travels, bfloat16, int8 or float32, and where it is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Arithmetic, Budgeted
from minimax_m2.harness.compare import compare
from minimax_m2.reference.communicator import Threads
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.reduction import reduced
from minimax_m2.reference.sharding import cut, span, span_cut

FIELDS = {"partial": None, "running": None, "out": None, "scale": "float32", "reciprocal": None}
CONTRACTS = {
    "ring of bfloat16": {"partial": "bfloat16", "running": "bfloat16", "out": "bfloat16"},
    "bfloat16 summed in float32": {"partial": "bfloat16", "running": "float32", "out": "bfloat16"},
    "int8": {"partial": "int8", "running": "float32", "out": "bfloat16"},
    "float32": {"partial": "float32", "running": "float32", "out": "float32"},
}
SEEDS = range(12)


def inputs(seed: int) -> tuple[Tensor, Tensor, int]:
    """``x [T, N]``, ``weight [H, N]`` as o_proj has them, and a number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(5, 96, generator=generator), torch.randn(160, 96, generator=generator) / 8
    return x.bfloat16(), weight.bfloat16(), (2, 3, 4, 5, 7, 8, 16)[seed % 7]


def shares(x: Tensor, weight: Tensor, tp: int) -> list[tuple[Tensor, Tensor]]:
    cuts = [span_cut(span(96, parts=tp, index=rank)) for rank in range(tp)]
    return [(cut(x, c, dim=1), cut(weight, c, dim=1)) for c in cuts]


def expected(seed: int, contract: str) -> Budgeted:
    x, weight, tp = inputs(seed)
    parts: list[Any] = [
        Budgeted.exact(a, Arithmetic()) @ b.double().mT for a, b in shares(x, weight, tp)
    ]  # fmt: skip
    found: Any = reduced(parts, group=32, contract=Contract(FIELDS | CONTRACTS[contract]))
    return found


def emulated(seed: int, contract: str, spoil: Callable[[list[Tensor]], list[Tensor]] = lambda parts: parts) -> Tensor:
    x, weight, tp = inputs(seed)
    parts = spoil([a.float() @ b.float().mT for a, b in shares(x, weight, tp)])
    return reduced(parts, group=32, contract=Contract(FIELDS | CONTRACTS[contract]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_split_projection_keeps_the_budget_of_its_reduction(contract: str, seed: int) -> None:
    found = compare("y", emulated(seed, contract), expected(seed, contract))
    assert found.passed, found


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(
    "spoil", [lambda parts: parts[1:], lambda parts: [*parts, parts[0]]], ids=["missing rank", "rank counted twice"]
)
def test_a_wrong_sum_leaves_the_budget(contract: str, spoil: Callable[[list[Tensor]], list[Tensor]]) -> None:
    assert not compare("y", emulated(3, contract, spoil), expected(3, contract)).passed


@pytest.mark.parametrize("less", ["ring of bfloat16", "int8"])
def test_a_sum_of_less_than_promised_leaves_the_budget(less: str) -> None:
    assert not compare("y", emulated(3, less), expected(3, "float32")).passed


def test_simulated_ranks_reduce_as_the_ring_of_their_dtype() -> None:
    x, weight, _ = inputs(1)
    parts = [(a.float() @ b.float().mT).bfloat16() for a, b in shares(x, weight, 4)]
    results = Threads(4).run(lambda rank: rank.all_reduce(parts[rank.rank]))
    contract = Contract(FIELDS | CONTRACTS["ring of bfloat16"])
    assert all(torch.equal(result, reduced(parts, contract=contract)) for result in results)


def test_a_sum_without_a_contract_is_the_sum() -> None:
    parts = [torch.full((2, 3), float(rank)) for rank in range(5)]
    assert torch.equal(reduced(parts), torch.full((2, 3), 10.0))
