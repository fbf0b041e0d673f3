"""Gates of a gated delta net: a decay in float32 down to its smallest, a strength for every head and token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, *, step: str = "") -> tuple[Tensor, Tensor]:
    """The gates in float32 torch; ``step`` names one thing to do wrong."""
    x = a.float() + (0.0 if step == "forgets dt_bias" else dt_bias.float())
    x = x.to(a.dtype).float() if step == "rounds the sum" else x
    rate = A_log.float() if step == "takes A_log for its exponential" else torch.exp(A_log.float())
    grown = torch.log(1 + torch.exp(x)) if step == "takes the logarithm of a sum" else softplus(x)
    g = rate * grown * (1.0 if step == "forgets the sign" else -1.0)
    g = torch.exp(g) if step == "returns the decay" else g
    beta = torch.sigmoid((b[:1].expand(b.shape) if step == "reads the first token's b" else b).float())
    if step == "rounds exp(-b)":
        beta = 1 / (1 + torch.exp(-b)).float()
    if step == "drops the last heads":
        beta[:, beta.shape[1] // 16 * 16 :] = 0
    return g, beta.to(b.dtype)


def doing(step: str) -> Callable[..., Any]:
    def gdn_gating(*args: Any, **keywords: Any) -> Any:
        return plain(*args, **keywords, step=step)

    return gdn_gating


def test_correct_float32_gates_pass() -> None:
    assert all(v.passed for v in try_on("gdn_gating", doing(""), cases=200))


def test_rounding_the_exponential_is_right_where_the_contract_says_so() -> None:
    found = try_on("gdn_gating", doing("rounds exp(-b)"), cases=200, contract={"exp_b": "dtype"})
    assert all(v.passed for v in found)


@pytest.mark.parametrize(
    "step",
    [
        "forgets dt_bias",
        "rounds the sum",
        "takes A_log for its exponential",
        "takes the logarithm of a sum",
        "forgets the sign",
        "returns the decay",
        "reads the first token's b",
        "rounds exp(-b)",
        "drops the last heads",
    ],
)
def test_wrong_gates_are_told(step: str) -> None:
    last = try_on("gdn_gating", doing(step), cases=80)[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "m2check repro" in last.explain()
