"""The fused update: the state decays by its own token's gates, unrounded, and learns by its own strength."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome
from minimax_m2.reference.gated_delta_rule import gated_delta_rule


def plain(q: Tensor, k: Tensor, v: Tensor, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, state: Tensor,
          state_index: Tensor, query_start: Tensor, *, step: str = "", **sizes: Any) -> Tensor:  # fmt: skip
    """The parts one after the other in float32 torch; ``step`` names one thing to do wrong."""
    x = a.float() + (0.0 if step == "forgets dt_bias" else dt_bias.float())
    g = -torch.exp(A_log.float()) * softplus(x)
    beta = torch.sigmoid((a if step == "takes a for b" else b).float())
    if step == "gives a token the gates of the one before":
        g, beta = g.roll(1, 0), beta.roll(1, 0)
    if step == "gives a head the gates of its neighbour":
        g, beta = g.roll(1, 1), beta.roll(1, 1)
    if step == "decays by half":
        g = g / 2
    if step == "rounds beta":
        beta = beta.to(b.dtype).float()
    if step == "learns without strength":
        beta = torch.ones_like(beta)
    heads, sequences = (q.float(), k.float(), v.float()), (state, state_index, query_start)
    return gated_delta_rule(*heads, g, beta, *sequences, **sizes).to(v.dtype)


def doing(step: str) -> Callable[..., Any]:
    def gdn_update(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return gdn_update


@pytest.mark.parametrize(("step", "contract"), [("", {}), ("rounds beta", {"beta": "dtype"})])
def test_the_parts_in_float32_pass_under_their_contract(step: str, contract: dict[str, Any]) -> None:
    assert all(v.passed for v in try_on("gdn_update", doing(step), cases=20, contract=contract))


@pytest.mark.parametrize(
    "step",
    [
        "forgets dt_bias",
        "takes a for b",
        "gives a token the gates of the one before",
        "gives a head the gates of its neighbour",
        "decays by half",
        "rounds beta",
        "learns without strength",
    ],
)
def test_a_wrong_update_is_told(step: str) -> None:
    last = try_on("gdn_update", doing(step), cases=60)[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "m2check repro" in last.explain()
