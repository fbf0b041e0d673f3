"""Residual addition, RMSNorm and quantisation: what is quantised is the normalised row, what is stored the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128, step: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """The op in float32 torch; ``step`` names one thing to do otherwise."""
    z = x.float() + residual.float()
    y = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps) * weight.float()
    if step == "quantises the rounded row":
        y = y.to(x.dtype).float()
    if step == "quantises before the weight":
        y = y / weight.float()
    parts = y.split(group, -1)
    top = torch.cat([part.abs().amax(-1, keepdim=True) for part in parts], -1)
    if step == "takes one scale a row":
        top = top.amax(-1, keepdim=True).expand(top.shape)
    scale = top if step == "forgets the floor" else top.clamp(min=1e-10)
    scale = scale / (240 if step == "fills to 240" else 448)
    codes = (y / scale.repeat_interleave(group, -1)[:, : y.shape[1]]).clamp(-448, 448).to(torch.float8_e4m3fn)
    stored = y if step == "stores the normalised row" else residual if step == "stores the old residual" else z
    return codes, scale.contiguous(), stored.to(x.dtype).clone()


def doing(step: str) -> Callable[..., Any]:
    def add_rms_norm_quant(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
        return plain(*args, **keywords, step=step)

    return add_rms_norm_quant


def test_a_correct_float32_add_rms_norm_quant_passes() -> None:
    assert all(v.passed for v in try_on("add_rms_norm_quant", doing(""), cases=200))


def test_quantising_the_rounded_row_is_right_where_the_contract_says_so() -> None:
    passed = try_on("add_rms_norm_quant", doing("quantises the rounded row"), cases=200, contract={"out": "dtype"})
    assert all(v.passed for v in passed), passed[-1].explain()


@pytest.mark.parametrize(
    ("step", "output"),
    [
        ("quantises the rounded row", "scale"),
        ("quantises before the weight", "q"),
        ("takes one scale a row", "q"),
        ("forgets the floor", "q"),
        ("fills to 240", "q"),
        ("stores the normalised row", "residual"),
        ("stores the old residual", "residual"),
    ],
)
def test_a_wrong_add_rms_norm_quant_is_told_by_its_output(step: str, output: str) -> None:
    last = try_on("add_rms_norm_quant", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert any(f"add_rms_norm_quant: {output}" in line for line in last.evidence)
    assert "m2check repro" in last.explain()
