"""Splitting a gated delta net's projections: every number in its place, to the bit, in either layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(qkvz: Tensor, ba: Tensor, *, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int,
          layout: str = "contiguous", step: str = "") -> tuple[Tensor, ...]:  # fmt: skip
    """The split by the column each number comes from; ``step`` names one thing to do wrong."""
    group, keys, values = num_v_heads // num_k_heads, num_k_heads * head_k_dim, num_v_heads * head_v_dim
    copied = head_k_dim if step == "takes dv for dk" else head_v_dim
    if layout == "contiguous" or step == "reads interleaved as contiguous":
        order = torch.arange(2 * keys + 2 * values).split([keys, keys, values, values])
        b, a = torch.arange(2 * num_v_heads).chunk(2)
    else:
        head = 2 * (head_k_dim + group * head_v_dim)
        starts = torch.arange(num_k_heads)[:, None] * head
        before = (0, head_k_dim, 2 * head_k_dim, 2 * head_k_dim + group * copied)
        widths = (head_k_dim, head_k_dim, group * head_v_dim, group * head_v_dim)
        order = tuple(((starts + at + torch.arange(n)) % qkvz.shape[1]).flatten()
                      for at, n in zip(before, widths, strict=True))  # fmt: skip
        gates = torch.arange(2 * num_v_heads).view(num_k_heads, 2, group)
        b, a = gates[:, 0].flatten(), gates[:, 1].flatten()
    q, k, v, z = order
    if step == "swaps v and z":
        v, z = z, v
    if step == "swaps b and a":
        b, a = a, b
    if step == "reads the gap between rows":
        qkvz = qkvz.as_strided(qkvz.shape, (qkvz.shape[1], 1))
    if step == "stops at the last whole vector":
        b = b.where(torch.arange(len(b)) < len(b) // 16 * 16, 0)
    shape = (len(qkvz), num_v_heads, head_v_dim)
    return qkvz[:, torch.cat([q, k, v])], qkvz[:, z].view(shape), ba[:, b], ba[:, a]


def doing(step: str) -> Callable[..., Any]:
    def qkvzba_split(*args: Any, **keywords: Any) -> Any:
        return plain(*args, **keywords, step=step)

    return qkvzba_split


def test_a_correct_split_passes() -> None:
    assert all(v.passed for v in try_on("qkvzba_split", doing(""), cases=100))


@pytest.mark.parametrize(
    "step",
    [
        "reads interleaved as contiguous",
        "takes dv for dk",
        "swaps v and z",
        "swaps b and a",
        "reads the gap between rows",
        "stops at the last whole vector",
    ],
)
def test_a_wrong_split_is_told_to_the_bit(step: str) -> None:
    last = try_on("qkvzba_split", doing(step))[-1]
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)
    assert "must be equal" in last.explain()
