"""Quantisation in groups: a scale that is never 0, quotients rounded to nearest even, groups where they belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(x: Tensor, *, group: int = 128, scale_format: str = "float32", step: str = "") -> tuple[Tensor, Tensor]:
    """The op in float32 torch; ``step`` names one thing to do otherwise."""
    wide, width = x.float(), x.shape[1]
    size = group + 1 if step == "ends groups one late" else group
    of_group = (torch.arange(width) // size).clamp(max=-(-width // group) - 1)
    index = of_group.expand(x.shape)
    top = torch.zeros(len(x), -(-width // group)).scatter_reduce(1, index, wide.abs(), "amax")
    scale = (top if step == "forgets the floor" else top.clamp(min=1e-10)) / 448
    if scale_format == "ue8m0":
        exponent = scale.log2().floor() if step == "rounds the exponent down" else scale.log2().ceil()
        scale = torch.exp2(exponent)
    spread = scale[:, of_group]
    ratio = wide * (1 / spread) if step == "multiplies by the reciprocal" else wide / spread
    if step == "truncates":
        # The next code towards 0 is the one below half a step less.
        spacing = torch.exp2(ratio.abs().clamp(min=2**-6).log2().floor() - 3)
        ratio = (ratio / spacing).trunc() * spacing
    if step == "breaks ties upwards":
        ratio = torch.nextafter(ratio, torch.full_like(ratio, torch.inf))
    return ratio.clamp(-448, 448).to(torch.float8_e4m3fn), scale


def doing(step: str) -> Callable[..., Any]:
    def block_quant(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        return plain(*args, **keywords, step=step)

    return block_quant


def test_a_correct_float32_block_quant_passes() -> None:
    assert all(v.passed for v in try_on("block_quant", doing(""), cases=200))


def test_a_reciprocal_is_right_where_the_contract_says_so() -> None:
    declared = {"reciprocal": "float32"}
    assert all(
        v.passed for v in try_on("block_quant", doing("multiplies by the reciprocal"), cases=200, contract=declared)
    )


@pytest.mark.parametrize(
    "step",
    [
        "multiplies by the reciprocal",
        "breaks ties upwards",
        "truncates",
        "ends groups one late",
        "rounds the exponent down",
        "forgets the floor",
    ],
)
def test_a_wrong_block_quant_is_told_by_output_and_element(step: str) -> None:
    last = try_on("block_quant", doing(step), cases=60)[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "q at" in last.evidence[0] or "scale" in last.evidence[0]
    assert "m2check repro" in last.explain()
