"""Rotary embedding: the first R channels turn, in halves, by the table's own row; the others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int, step: str = "") -> Any:
    """Rotary embedding in float32 torch; ``step`` names one thing to do wrong."""
    if step == "reads int64 positions as int32" and positions.dtype == torch.int64:
        positions = positions.contiguous().view(torch.int32)[: len(positions)]
    if step == "keeps positions in bfloat16":
        positions = positions.to(torch.bfloat16).clamp(max=len(cos_sin) - 1)
    if step == "ignores the table's stride":
        cos_sin = cos_sin.as_strided(cos_sin.shape, (cos_sin.shape[1], 1))
    cos, sin = cos_sin[positions.long()].float().nan_to_num(0.5)[:, None].chunk(2, -1)
    if step == "swaps cosines and sines":
        cos, sin = sin, cos
    width = q.shape[-1] if step == "rotates all dims" else rotary_dim
    return tuple(turned(x, cos, sin, width, step) for x in (q, k))


def turned(x: Tensor, cos: Tensor, sin: Tensor, width: int, step: str) -> Tensor:
    half = width // 2
    cos, sin = (t.repeat_interleave(-(-half // max(1, t.shape[-1])), -1)[..., :half] for t in (cos, sin))
    order = torch.arange(x.shape[-1])
    if step == "pairs 2j with 2j + 1":
        order = torch.cat([order[0:width:2], order[1:width:2], order[width:]])
    if step == "pairs j with j + D/2":
        far = x.shape[-1] // 2
        order = torch.cat([order[:half], order[far : far + half], order[half:far], order[far + half :]])
    y = x.float()[..., order]
    first, second = y[..., :half], y[..., half:width]
    y = torch.cat([first * cos - second * sin, second * cos + first * sin, y[..., width:]], -1)
    return y[..., order.argsort()].to(x.dtype)


def doing(step: str) -> Callable[..., Any]:
    def rope(*args: Any, **keywords: Any) -> Any:
        return plain(*args, **keywords, step=step)

    return rope


def test_a_correct_float32_rope_passes() -> None:
    assert all(v.passed for v in try_on("rope", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    [
        "rotates all dims",
        "swaps cosines and sines",
        "pairs 2j with 2j + 1",
        "pairs j with j + D/2",
        "reads int64 positions as int32",
        "keeps positions in bfloat16",
        "ignores the table's stride",
    ],
)
def test_a_wrong_rope_is_told_with_its_element(step: str) -> None:
    last = try_on("rope", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "must be equal" in last.explain() or "x budget" in last.explain()
    assert "m2check repro" in last.explain()
