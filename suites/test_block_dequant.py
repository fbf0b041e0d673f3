"""Dequantisation of weights: each block by its own scale, multiplied, short blocks at the edges included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(q: Tensor, scale: Tensor, *, block: tuple[int, int], dtype: torch.dtype, step: str = "") -> Tensor:
    """The op in float32 torch; ``step`` names one thing to do wrong."""
    (n, h), (grid_n, grid_h) = q.shape[-2:], scale.shape[-2:]
    rows, columns = block
    if step == "guesses the block from the shapes":
        rows, columns = -(-n // max(grid_n, 1)), -(-h // max(grid_h, 1))
    if step == "swaps the block's sides":
        rows, columns = columns, rows
    row = (torch.arange(n) // rows).clamp(max=max(grid_n - 1, 0))
    column = (torch.arange(h) // columns).clamp(max=grid_h - 1)
    if step == "repeats scales by turns":
        row, column = torch.arange(n) % max(grid_n, 1), torch.arange(h) % grid_h
    factor = scale.index_select(-2, row).index_select(-1, column)
    if step == "takes the inverse at its word":
        return (q.float() / factor).to(dtype)
    if step == "rounds the scale":
        factor = factor.bfloat16().float()
    return (q.float() * factor).to(dtype)


def doing(step: str) -> Callable[..., Any]:
    def block_dequant(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return block_dequant


def test_a_correct_float32_block_dequant_passes() -> None:
    assert all(v.passed for v in try_on("block_dequant", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    [
        "guesses the block from the shapes",
        "swaps the block's sides",
        "repeats scales by turns",
        "takes the inverse at its word",
        "rounds the scale",
    ],
)
def test_a_wrong_block_dequant_is_told_with_its_budget(step: str) -> None:
    last = try_on("block_dequant", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "w" in last.evidence[0]
    assert "m2check repro" in last.explain()
