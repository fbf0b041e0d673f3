"""Kernels that sum over ranks, on one GPU: right, the same bits on all ranks, and never stuck.

Two ranks stand together on it, on streams of their own, which is enough for calls one by one. Cases, replays and whole
models have a GPU each: ``suites/parallel/test_fused_ranks.py``.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.devices import absence
from minimax_m2.harness.fused_checks import judged_rows, missing_rank
from minimax_m2.harness.fused_ranks import drawn_rows, held_rows, on_one_gpu
from minimax_m2.kernels.gpu import toolkit
from minimax_m2.reference.add_rms_norm import add_rms_norm
from minimax_m2.reference.contract import Contract

WHY = absence("gpu") or (None if toolkit.compiler() else "nvcc is not here")
ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=f"not here: {WHY}")]


def on_a_gpu(test: object) -> object:
    for mark in ON_A_GPU:
        test = mark(test)
    return test


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_is_right_passes_and_what_is_less_does_not(dtype: torch.dtype) -> None:
    rows = drawn_rows(2, tokens=5, width=256, dtype=dtype, seed=3)
    named = str(dtype).removeprefix("torch.")
    contract = Contract({"residual": named, "variance_of": "unrounded", "normalised": None, "out": named})

    def emulated(*shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = sum(share.double() for share in shares)
        assert isinstance(total, torch.Tensor)
        y, z = add_rms_norm(total, rows.residual.double(), rows.weight.double(), eps=1e-6, contract=contract)
        return y.to(dtype), z.to(dtype)

    one, other = rows.shares
    assert all(found.passed for found in held_rows(rows, emulated(one, other)))
    assert not any(found.passed for found in held_rows(rows, emulated(one)))
    assert not any(found.passed for found in held_rows(rows, emulated(one, other, other)))
    if dtype != torch.float32:
        # A sum that is rounded before the stream is added, as a ring's is, errs by more.
        assert not all(found.passed for found in held_rows(rows, emulated(one + other)))


@on_a_gpu
def test_sums_of_whole_shares_keep_the_budget_of_their_reduction() -> None:
    assert judged_rows(on_one_gpu()) == []


@on_a_gpu
def test_a_rank_that_stays_away_is_named_and_nobody_waits_for_ever() -> None:
    found = missing_rank(on_one_gpu(patience_s=0.5))
    assert found["missing"] == {"0": [1, 7, None]}
    assert found["rows are nan"]
    assert found["seconds"] < 5
