"""Sums of squares lean, alike in all rows, and the budget knows by how much: right kernels of any order pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget_lean import SINGLE, lean
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object

M2_WIDTH = {"Hq": 48, "Hk": 8, "D": 128}


def squares(dtype: torch.dtype, width: int, rows: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).double().square()


def one_by_one(terms: Tensor) -> Tensor:
    """float32 additions from the first term to the last."""
    total = torch.zeros(len(terms))
    for column in terms.to(torch.float32).unbind(-1):
        total = total + column
    return total.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [33, 200])
def test_what_rows_share_is_found_by_adding_them_up(dtype: torch.dtype, width: int) -> None:
    terms = squares(dtype, width)
    off = float(((one_by_one(terms) - terms.sum(-1)) / terms.sum(-1)).mean())
    assert lean(terms, width, SINGLE) < lean(terms, 1, SINGLE)
    assert lean(terms, 1, SINGLE) >= abs(off)


def test_long_sums_of_bfloat16_squares_lean_by_more_than_their_noise() -> None:
    terms = squares(torch.bfloat16, 3072)
    off = (one_by_one(terms) - terms.sum(-1)) / terms.sum(-1)
    assert abs(float(off.mean())) > 3 * float(off.std())
    # derived: scaled by a power of two, the same 64 quotients, averaged in float64
    assert lean(terms, 1, SINGLE) == pytest.approx(abs(float(off.mean())), rel=1e-12)


def test_sums_that_do_not_round_do_not_lean() -> None:
    whole = torch.arange(64, dtype=torch.float64).expand(4, 64)
    assert lean(whole, 1, SINGLE) == 0
    assert lean(squares(torch.bfloat16, 64), 1, 2.0**-53) == 0
    assert lean(torch.zeros(3, 8, dtype=torch.float64), 1, SINGLE) == 0
    assert lean(torch.ones(3, 1, dtype=torch.float64), 1, SINGLE) == 0


def test_what_overflows_leans_as_what_does_not() -> None:
    terms = squares(torch.bfloat16, 64)
    assert lean(terms * 2.0**300, 1, SINGLE) == lean(terms, 1, SINGLE)


def in_lanes(lanes: int, gain: float = 1.0) -> Provider:
    """Sums of squares in so many float32 lanes, one term after the other."""

    def qk_sum_squares(
        qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, counted_kv_heads: int | None = None
    ) -> Tensor:
        q, k = num_heads * head_dim, (num_kv_heads if counted_kv_heads is None else counted_kv_heads) * head_dim
        sums = [in_order(x.float().square()) for x in qkv[:, : q + k].split([q, k], -1)]
        return torch.stack(sums, -1) * gain

    def in_order(terms: Tensor) -> Tensor:
        sums = torch.zeros(len(terms), lanes)
        for some in terms.split(lanes, -1):
            sums[:, : some.shape[-1]] += some
        while sums.shape[-1] > 1:
            sums = sums[:, : sums.shape[-1] // 2] + sums[:, sums.shape[-1] // 2 :]
        return sums[:, 0]

    declared: dict[str, Any] = {"qk_sum_squares": {"lanes": lanes}}
    return from_object(SimpleNamespace(qk_sum_squares=qk_sum_squares, contract=declared), name="in lanes")


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_right_kernel_of_any_order_passes_at_m2s_width(dtype: str, lanes: int) -> None:
    case = find_op("qk_sum_squares").case(T=16, **M2_WIDTH, dtype=dtype, seed=1)
    assert judge(case, in_lanes(lanes)).passed


def test_a_gain_beyond_the_lean_is_told() -> None:
    case = find_op("qk_sum_squares").case(T=16, **M2_WIDTH, seed=1)
    assert judge(case, in_lanes(16)).passed
    assert not judge(case, in_lanes(16, gain=1 + 2e-5)).passed
