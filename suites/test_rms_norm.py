"""RMSNorm: eps stands under the root, the mean counts every channel, and the result rounds where the contract says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(x: Tensor, weight: Tensor, *, eps: float, step: str = "") -> Tensor:
    """RMSNorm in float32 torch; ``step`` names one thing to do wrong."""
    wide, width = x.float(), x.shape[-1]
    count = max(1, width - 1) if step == "takes the mean over H - 1" else width
    if step == "pads the width to 64":
        count = -(-width // 64) * 64
    mean = wide.square().sum(-1, keepdim=True) / count
    scale = torch.rsqrt(mean) + eps if step == "adds eps outside the root" else torch.rsqrt(mean + eps)
    if step == "forgets eps":
        scale = torch.rsqrt(mean)
    y = wide * scale
    if step == "rounds twice":
        y = y.to(x.dtype).float()
    y = y if step == "skips the weight" else y * weight.float()
    if step == "drops the last row":
        y = torch.cat([y[:-1], torch.zeros_like(y[-1:])])
    return y.to(x.dtype)


def doing(step: str) -> Callable[..., Any]:
    def rms_norm(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return rms_norm


def test_a_correct_float32_rms_norm_passes() -> None:
    assert all(v.passed for v in try_on("rms_norm", doing(""), cases=200))


def test_two_roundings_are_right_where_the_contract_says_two() -> None:
    assert all(v.passed for v in try_on("rms_norm", doing("rounds twice"), contract={"normalised": "dtype"}))


@pytest.mark.parametrize(
    "step",
    [
        "adds eps outside the root",
        "takes the mean over H - 1",
        "pads the width to 64",
        "rounds twice",
        "skips the weight",
        "drops the last row",
    ],
)
def test_a_wrong_rms_norm_is_told_with_its_budget(step: str) -> None:
    last = try_on("rms_norm", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "y" in last.evidence[0]
    assert "m2check repro" in last.explain()


def test_a_row_of_zeros_needs_eps() -> None:
    assert try_on("rms_norm", doing("forgets eps"))[-1].outcome in (Outcome.NOT_A_NUMBER, Outcome.WRONG)
