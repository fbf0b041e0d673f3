"""QK norm: over the full width, by the statistics of all ranks, eps on the mean; then rotation of R channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
          num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
          step: str = "") -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """QK norm and rotation in float32 torch; ``step`` names one thing to do wrong."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in qkv.split([n * head_dim for n in
               (num_heads, num_kv_heads, num_kv_heads)], -1))  # fmt: skip
    own = torch.stack([x.float().square().sum((-1, -2)) for x in (q, k)], -1)
    sums = own if stats is None or step == "uses its own sums though others are given" else stats
    if step == "divides by its local width":
        q_width, k_width = q[0:1].numel() or 1, k[0:1].numel() or 1
    cos, sin = cos_sin[positions.long()].float()[:, None].chunk(2, -1)
    outputs = []
    for x, total, width, weight in ((q, sums[:, 0], q_width, q_weight), (k, sums[:, 1], k_width, k_weight)):
        mean = (total / width)[:, None, None] + eps
        if step == "puts eps on the sum":
            mean = ((total + eps) / width)[:, None, None]
        if step == "normalises every head apart":
            mean = x.float().square().mean(-1, keepdim=True) + eps
        y = x.float() * mean.rsqrt() * weight.float().view(-1, head_dim)
        first, second = y[..., :rotary_dim].chunk(2, -1)
        rest = x.float()[..., rotary_dim:] if step == "passes channels on without the norm" else y[..., rotary_dim:]
        outputs.append(torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x.dtype))
    if step == "skips k":
        outputs[1] = k.contiguous()
    return outputs[0], outputs[1], v.contiguous() * (step != "leaves v unwritten")


def sums(qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, counted_kv_heads: int | None = None,
         step: str = "") -> Tensor:  # fmt: skip
    counted = num_kv_heads if counted_kv_heads is None or step == "counts every replica" else counted_kv_heads
    q, k, _ = qkv.float().split([n * head_dim for n in (num_heads, counted, 2 * num_kv_heads - counted)], -1)
    stats = torch.stack([q.square().sum(-1), k.square().sum(-1)], -1)
    return stats / q.shape[-1] if step == "returns means" else stats


def doing(function: Callable[..., Any], step: str) -> Callable[..., Any]:
    def attempt(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords, step=step)

    return attempt


@pytest.mark.parametrize("op, function", [("qk_norm_rope", plain), ("qk_sum_squares", sums)], ids=["norm", "sums"])
def test_a_correct_float32_kernel_passes(op: str, function: Callable[..., Any]) -> None:
    assert all(v.passed for v in try_on(op, doing(function, ""), cases=80))


@pytest.mark.parametrize("step", ["normalises every head apart", "puts eps on the sum", "divides by its local width",
    "uses its own sums though others are given", "passes channels on without the norm", "skips k",
    "leaves v unwritten"])  # fmt: skip
def test_a_wrong_norm_is_told_with_its_element(step: str) -> None:
    last = try_on("qk_norm_rope", doing(plain, step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "must be equal" in last.explain() or "x budget" in last.explain() or "x its limit" in last.explain()


@pytest.mark.parametrize("step", ["counts every replica", "returns means"])
def test_wrong_sums_are_told(step: str) -> None:
    assert try_on("qk_sum_squares", doing(sums, step))[-1].outcome is Outcome.WRONG
