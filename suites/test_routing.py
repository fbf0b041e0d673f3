"""Routing: bias selects and does not weigh, ties are free, everything else is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(logits: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
          scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32,
          num_valid: Tensor | None = None, step: str = "") -> tuple[Tensor, Tensor]:  # fmt: skip
    """Routing in float32 torch; ``step`` names one thing to do wrong."""
    score = torch.sigmoid(logits.float()) if scoring == "sigmoid" else logits.float().softmax(-1)
    selection = score if bias is None or step == "ignores the bias" else score + bias
    ids = selection.topk(top_k, -1).indices
    if step == "breaks ties the other way":
        last_first = selection.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        ids = (selection.shape[-1] - 1 - last_first)[:, :top_k]
    weights = (selection if step == "weighs by biased scores" else score).gather(1, ids)
    if renormalize and step != "skips renormalisation":
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    rows = torch.arange(len(ids)) >= (len(ids) if num_valid is None else num_valid)
    weights, ids = (weights * scale).masked_fill(rows[:, None], 0.0), ids.masked_fill(rows[:, None], -1)
    if step == "reads int64 ids as int32":
        ids = ids.contiguous().view(torch.int32).reshape(len(ids), 2 * top_k)[:, :top_k]
    if step == "drops the last token":
        weights, ids = (torch.cat([t[:-1], torch.zeros_like(t[-1:])]) for t in (weights, ids))
    return weights, ids.to(indices_dtype)


def doing(step: str) -> Callable[..., Any]:
    def routing(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        return plain(*args, **keywords, step=step)

    return routing


@pytest.mark.parametrize("step", ["", "breaks ties the other way"])
def test_a_correct_float32_routing_passes(step: str) -> None:
    assert all(v.passed for v in try_on("routing", doing(step), cases=200))


@pytest.mark.parametrize(
    "step",
    [
        "ignores the bias",
        "weighs by biased scores",
        "reads int64 ids as int32",
        "skips renormalisation",
        "drops the last token",
    ],
)
def test_a_wrong_routing_is_told_with_token_and_gap(step: str) -> None:
    last = try_on("routing", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "token" in last.explain()
    assert "m2check repro" in last.explain()
