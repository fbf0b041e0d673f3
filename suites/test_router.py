"""The router chooses as its parts do: float32 logits, a bias that selects and does not weigh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True,
          scoring: str = "sigmoid", indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None,
          step: str = "") -> tuple[Tensor, Tensor]:  # fmt: skip
    """The router in float32 torch; ``step`` names one thing to do wrong."""
    gate = weight.bfloat16().float() if step == "keeps the gate in bf16" else weight
    logits = x.float() @ gate.mT
    if step == "rounds the logits to bf16":
        logits = logits.bfloat16().float()
    score = torch.sigmoid(logits) if scoring == "sigmoid" else logits.softmax(-1)
    if step == "adds the bias to the logits" and bias is not None:
        score = torch.sigmoid(logits + bias) if scoring == "sigmoid" else (logits + bias).softmax(-1)
    selection = score if bias is None or step == "ignores the bias" else score + bias
    ids = selection.topk(top_k, -1).indices
    weights = score.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    rows = (torch.arange(len(ids)) >= (len(ids) if num_valid is None else num_valid))[:, None]
    return weights.masked_fill(rows, 0.0), ids.masked_fill(rows, -1).to(indices_dtype)


def doing(step: str) -> Callable[..., Any]:
    def router(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        return plain(*args, **keywords, step=step)

    return router


def test_a_correct_float32_router_passes() -> None:
    assert all(v.passed for v in try_on("router", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    ["ignores the bias", "adds the bias to the logits", "keeps the gate in bf16", "rounds the logits to bf16"],
)
def test_a_wrong_router_is_told_with_token_and_gap(step: str) -> None:
    last = try_on("router", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "token" in last.explain()
    assert "m2check repro" in last.explain()
