"""SwiGLU and quantisation: the gated values decide the scale, and each rounds to nearest once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(gate_up: Tensor, *, group: int = 128, quant: str = "e4m3", step: str = "") -> tuple[Tensor, Tensor]:
    """The op in float32 torch; ``step`` names one thing to do otherwise."""
    gate, up = gate_up.float().chunk(2, -1)
    y = functional.silu(up) * gate if step == "swaps gate and up" else functional.silu(gate) * up
    if step == "quantises the rounded row":
        y = y.to(gate_up.dtype).float()
    of_scale = gate if step == "scales by the gate" else y
    top = torch.cat([part.abs().amax(-1, keepdim=True) for part in of_scale.split(group, -1)], -1)
    largest = 127.0 if quant == "int8" else 448.0
    scale = (top if step == "forgets the floor" else top.clamp(min=1e-10)) / largest
    used = min(group, y.shape[1])
    ratio = y / scale.repeat_interleave(used, -1)[:, : y.shape[1]]
    if quant == "e4m3":
        return ratio.clamp(-448, 448).to(torch.float8_e4m3fn), scale
    ratio = ratio.nan_to_num()
    if step == "truncates integers":
        return ratio.trunc().to(torch.int8), scale
    codes = (ratio + 0.5).floor() if step == "rounds halves up" else ratio.round()
    return codes.clamp(-127, 127).to(torch.int8), scale


def doing(step: str) -> Callable[..., Any]:
    def swiglu_quant(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        return plain(*args, **keywords, step=step)

    return swiglu_quant


def test_a_correct_float32_swiglu_quant_passes() -> None:
    assert all(v.passed for v in try_on("swiglu_quant", doing(""), cases=200))


@pytest.mark.parametrize(
    ("step", "contract"),
    [("quantises the rounded row", {"out": "dtype"}), ("rounds halves up", {"ties": "up"})],
)
def test_another_rounding_is_right_where_the_contract_says_so(step: str, contract: dict[str, str]) -> None:
    passed = try_on("swiglu_quant", doing(step), contract=contract, cases=200)
    assert all(v.passed for v in passed), passed[-1].explain()


@pytest.mark.parametrize(
    "step",
    [
        "swaps gate and up",
        "quantises the rounded row",
        "scales by the gate",
        "forgets the floor",
        "truncates integers",
    ],
)
def test_a_wrong_swiglu_quant_is_told_by_output_and_element(step: str) -> None:
    last = try_on("swiglu_quant", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "q at" in last.evidence[0] or "scale" in last.evidence[0]
    assert "m2check repro" in last.explain()
