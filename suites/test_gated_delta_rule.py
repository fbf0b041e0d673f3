"""The gated delta rule: decay, correct, write, read, in that order, in the sequence's own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, state_index: Tensor,
          query_start: Tensor, *, scale: float, l2norm: bool = True, step: str = "") -> Tensor:  # fmt: skip
    """The recurrence in float32 torch; ``step`` names one thing to do wrong."""
    o, group, starts = torch.zeros(v.shape), v.shape[1] // k.shape[1], query_start.tolist()
    q, k = (lengthened(x.float(), l2norm, step) for x in (q, k))
    heads = (
        torch.arange(v.shape[1]) % k.shape[1] if step == "deals heads in turn" else torch.arange(v.shape[1]) // group
    )
    scale = 1.0 if step == "forgets the scale" else scale
    for b, (slot, start, end) in enumerate(zip(state_index.tolist(), starts, starts[1:], strict=False)):
        slot = b if step == "ignores state_index" and slot >= 0 else slot
        if slot < 0 and step != "takes -1 for the last slot":
            continue
        S, own = state[slot].clone(), state[slot]
        for t in range(start, end):
            S = torch.zeros_like(S) if step == "starts each chunk anew" and t > start and (t - start) % 64 == 0 else S
            old = (g[t] if step == "takes g for its exponential" else g[t].exp())[:, None, None] * S
            read = torch.einsum("hk,hkv->hv", k[t, heads], S if step == "corrects before it decays" else old)
            weight = beta[start if step == "reads the first token's beta" else t].float()[:, None]
            delta = (v[t].float() - read) * (1.0 if step == "forgets beta" else weight)
            S = old + k[t, heads, :, None] * delta[:, None]
            o[t] = torch.einsum("hk,hkv->hv", q[t, heads] * scale, old if step == "reads before it writes" else S)
        if step != "keeps no state":
            own.copy_(S)
    if step == "drops the last columns":
        o[..., v.shape[2] // 16 * 16 :] = 0
    return o.to(v.dtype)


def lengthened(x: Tensor, l2norm: bool, step: str) -> Tensor:
    """``x`` of length 1, or of an epsilon less."""
    if not l2norm or step == "forgets l2norm":
        return x
    squares = x.square()
    total = squares.mean(-1, keepdim=True) if step == "adds eps to the mean" else squares.sum(-1, keepdim=True)
    if step == "adds eps to the root":
        return x / (total.sqrt() + 1e-6)
    root = (total + (1e-5 if step == "adds the eps of another engine" else 1e-6)).rsqrt()
    return x * root * (x.shape[-1] ** -0.5 if step == "adds eps to the mean" else 1.0)


def doing(step: str) -> Callable[..., Any]:
    def gated_delta_rule(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return gated_delta_rule


@pytest.mark.parametrize(("step", "contract"), [("", {}), ("adds eps to the root", {"eps_place": "root"}),
    ("adds the eps of another engine", {"l2norm_eps": 1e-5})])  # fmt: skip
def test_a_correct_float32_recurrence_passes_under_its_contract(step: str, contract: dict[str, Any]) -> None:
    assert all(v.passed for v in try_on("gated_delta_rule", doing(step), cases=60, contract=contract))


@pytest.mark.parametrize("step", ["forgets beta", "takes g for its exponential", "takes -1 for the last slot",
    "keeps no state", "adds eps to the mean", "adds eps to the root", "adds the eps of another engine",
    "forgets l2norm", "deals heads in turn", "drops the last columns", "starts each chunk anew", "forgets the scale",
    "ignores state_index", "corrects before it decays", "reads before it writes",
    "reads the first token's beta"])  # fmt: skip
def test_a_wrong_recurrence_is_told(step: str) -> None:
    last = try_on("gated_delta_rule", doing(step), cases=60)[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "m2check repro" in last.explain()
