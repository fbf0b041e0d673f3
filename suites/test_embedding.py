"""Embedding: the shard's rows to the bit, zeros for every other id, whatever the id's width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(ids: Tensor, weight: Tensor, *, vocab_start: int = 0, step: str = "") -> Tensor:
    """The look-up in torch; ``step`` names one thing to do wrong."""
    if step == "reads int64 ids as int32" and ids.dtype == torch.int64:
        ids = ids.view(torch.int32)[: len(ids)]
    local = ids.long() - (0 if step == "ignores vocab_start" else vocab_start)
    last = len(weight) if step == "lets the row behind the shard in" else len(weight) - 1
    inside = (local >= 0) & (local <= last)
    if step == "wraps negative ids":
        inside, local = local < len(weight), local % len(weight)
    rows = weight[local.clamp(0, len(weight) - 1)]
    if step == "gives ids of other shards a row":
        return rows
    if step == "goes through bfloat16":
        rows = rows.bfloat16().to(weight.dtype)
    return torch.where(inside[:, None], rows, torch.zeros_like(rows))


def doing(step: str) -> Callable[..., Any]:
    def embedding(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return embedding


def test_a_correct_look_up_passes() -> None:
    assert all(v.passed for v in try_on("embedding", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    [
        "ignores vocab_start",
        "gives ids of other shards a row",
        "lets the row behind the shard in",
        "wraps negative ids",
        "reads int64 ids as int32",
        "goes through bfloat16",
    ],
)
def test_a_wrong_look_up_is_told_to_the_bit(step: str) -> None:
    last = try_on("embedding", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "must be equal" in last.explain()
