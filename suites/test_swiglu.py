"""SwiGLU: SiLU of the lower half times the upper half, to the last column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(gate_up: Tensor, *, step: str = "") -> Tensor:
    """SwiGLU in float32 torch; ``step`` names one thing to do wrong."""
    gate, up = gate_up.float().chunk(2, -1)
    if step == "swaps gate and up":
        gate, up = up, gate
    if step == "interleaves the halves":
        gate, up = gate_up.float()[:, 0::2], gate_up.float()[:, 1::2]
    act = functional.silu(gate)
    if step == "multiplies by the sigmoid":
        act = gate * torch.sigmoid(gate)
    if step == "takes exp(x) for exp(-x)":
        act = gate * torch.sigmoid(-gate)
    if step == "is a GELU":
        act = functional.gelu(gate)
    if step == "approximates tanh":
        act = gate * (0.5 * torch.tanh((gate / 2).bfloat16().float()) + 0.5)
    if step == "rounds SiLU":
        act = act.to(gate_up.dtype).float()
    y = (act * up).to(gate_up.dtype)
    if step == "leaves the tail columns":
        y[:, y.shape[1] // 8 * 8 :] = 0
    return y


def doing(step: str) -> Callable[..., Any]:
    def swiglu(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return swiglu


def test_a_correct_float32_swiglu_passes() -> None:
    assert all(v.passed for v in try_on("swiglu", doing(""), cases=200))


def test_a_product_with_the_sigmoid_is_as_right_as_a_quotient() -> None:
    assert all(v.passed for v in try_on("swiglu", doing("multiplies by the sigmoid"), cases=200))


def test_rounding_silu_is_right_where_the_contract_says_so() -> None:
    assert all(v.passed for v in try_on("swiglu", doing("rounds SiLU"), cases=200, contract={"silu": "dtype"}))


@pytest.mark.parametrize(
    "step",
    [
        "swaps gate and up",
        "interleaves the halves",
        "takes exp(x) for exp(-x)",
        "is a GELU",
        "approximates tanh",
        "rounds SiLU",
        "leaves the tail columns",
    ],
)
def test_a_wrong_swiglu_is_told_with_its_budget(step: str) -> None:
    last = try_on("swiglu", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "budget" in last.evidence[0] or "limit" in last.evidence[0]
    assert "m2check repro" in last.explain()
