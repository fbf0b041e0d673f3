"""Attention is causal up to the last key, groups its heads, and reads a sequence's own slots only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def flash(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, step: str) -> Tensor:
    """One head's rows ``[n, D]`` over keys in blocks of 32, with a running maximum and sum."""
    top = torch.full((len(q), 1), -torch.inf)
    total, y = torch.zeros(len(q), 1), torch.zeros(len(q), v.shape[-1])
    for first in range(0, len(k), 32):
        block = slice(first, first + 32)
        score = (q @ k[block].mT).masked_fill(~visible[:, block], -torch.inf)
        peak = torch.maximum(top, score.amax(1, keepdim=True))
        decay = torch.exp(top - peak).nan_to_num(1.0)
        weight = torch.exp(score - peak).nan_to_num(0.0)
        total = total * (1.0 if step == "forgets to rescale the running sum" else decay) + weight.sum(1, keepdim=True)
        y, top = y * decay + weight @ v[block], peak
    return (y / total).nan_to_num(0.0)


def plain(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, *,
          scale: float, max_query_len: int, max_seq_len: int, k_scale: Any = None, v_scale: Any = None,
          step: str = "") -> Tensor:  # fmt: skip
    """Flash attention in float32 torch; ``step`` names one thing to do wrong."""
    y, page, Hk = torch.zeros(q.shape), k_cache.shape[1], k_cache.shape[2]
    group = q.shape[1] // Hk
    for b, (S, start, end) in enumerate(
        zip(seq_lens.tolist(), query_start.tolist(), query_start.tolist()[1:], strict=False)
    ):
        n, length = end - start, S + (step == "reads one key beyond the sequence" and S % page > 0)
        slot = torch.arange(length)
        pages = block_table[b].long()[slot // page] if step != "ignores the block table" else slot // page
        k, v = (cache[pages, slot % page].float() for cache in (k_cache, v_cache))
        k, v = k * (1.0 if k_scale is None else k_scale), v * (1.0 if v_scale is None else v_scale)
        last = torch.arange(n) + (0 if step == "aligns the causal edge to the start" else length - n)
        visible = slot <= last[:, None]
        for h in range(q.shape[1]):
            kv = h % Hk if step == "deals heads in turn" else h // group
            rows = q[start:end, h].float() * (1.0 if step == "forgets the scale" else scale)
            y[start:end, h] = flash(rows, k[:, kv], v[:, kv], visible, step)
    return y.to(q.dtype)


def doing(step: str) -> Callable[..., Tensor]:
    def attention(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return attention


def test_a_correct_float32_attention_passes() -> None:
    assert all(v.passed for v in try_on("attention", doing(""), cases=200, contract={"probabilities": None}))


@pytest.mark.parametrize(
    "step",
    [
        "forgets the scale",
        "aligns the causal edge to the start",
        "deals heads in turn",
        "ignores the block table",
        "reads one key beyond the sequence",
        "forgets to rescale the running sum",
    ],
)
def test_a_wrong_attention_is_told_with_its_worst_element(step: str) -> None:
    last = try_on("attention", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "m2check repro" in last.explain()
