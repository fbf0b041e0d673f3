"""A dense layer adds in float32 and rounds once, over all its rows, columns and terms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def added_in_bf16(x: Tensor, weight: Tensor) -> Tensor:
    """Add 16 products at a time to a bfloat16 sum."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
    for left, right in zip(x.split(16, 1), weight.split(16, 1), strict=True):
        total = (total.float() + left @ right.mT).bfloat16()
    return total.float()


def plain(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None, step: str = "") -> Tensor:
    """The layer in float32 torch; ``step`` names one thing to do wrong."""
    left, right = x.float(), weight.float()
    if step == "transposes a 16 x 16 block of the weight" and min(weight.shape) >= 16:
        right = right.clone()
        right[:16, :16] = weight[:16, :16].float().mT
    y = added_in_bf16(left, right) if step == "adds in bf16" else left @ right.mT
    if step == "drops the last column":
        y[:, -1] = 0
    if step == "drops the last row":
        y[-1:] = 0
    return y.to(out_dtype or x.dtype)


def doing(step: str) -> Callable[..., Tensor]:
    def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return plain(x, weight, out_dtype=out_dtype, step=step)

    return linear


def test_a_correct_float32_layer_passes() -> None:
    assert all(v.passed for v in try_on("linear", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    ["drops the last column", "drops the last row", "transposes a 16 x 16 block of the weight", "adds in bf16"],
)
def test_a_wrong_layer_is_told_with_its_worst_element(step: str) -> None:
    last = try_on("linear", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "y" in last.explain()
    assert "m2check repro" in last.explain()
