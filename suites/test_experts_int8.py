"""Experts of int8 weights and activations: integer sums pass, each wrong code, scale and bias is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome

CONTRACT = {"activation": "int8", "act": "float32"}


def int8_cases(count: int) -> list[Case]:
    """Sampled cases of int8 weights whose ids are no words of pack_routing."""
    drawn = sampled(find_op("experts"), 10 * count)
    return [case for case in drawn if case["quant"] == "int8" and case["ids"] != "packed"][:count]


def pack_experts(w13: Tensor, w2: Tensor, *, w13_scale: Tensor, w2_scale: Tensor, block: None = None,
                 step: str = "") -> tuple[Tensor, ...]:  # fmt: skip
    """Weights as they are, scales [E, N]."""
    if step == "takes the next channel's scale":
        w13_scale, w2_scale = w13_scale.roll(1, 1), w2_scale.roll(1, 1)
    if step == "gives up's channels gate's scales":
        gate = w13_scale.chunk(2, 1)[0]
        w13_scale = torch.cat([gate, gate], 1)
    return w13, w2, w13_scale[..., 0], w2_scale[..., 0]


def multiplied(x: Tensor, w: Tensor, w_scale: Tensor, step: str) -> Tensor:
    """Rows quantised, their codes multiplied in integers, the sums scaled."""
    absmax = x.abs().amax() if step == "scales all rows alike" else x.abs().amax(-1, keepdim=True)
    scale = absmax.clamp(min=1e-10) / 127
    q = x / scale
    q = (q.trunc() if step == "cuts codes off" else q.round()).clamp(-127, 127).int()
    if step == "holds codes in seven bits":
        q = q.clamp(-63, 63)
    total = q @ w.int().mT
    if step == "forgets the bias of one column":
        total[:, len(w) // 2] += 128 * w[len(w) // 2].int().sum()
    return total.float() * scale * w_scale


def experts(x: Tensor, packed: tuple[Tensor, ...], weights: Tensor, ids: Tensor, *, expert_map: Tensor | None = None,
            x_scale: None = None, out_dtype: torch.dtype | None = None, step: str = "") -> Tensor:  # fmt: skip
    """Experts in float32 torch on integer products; ``step`` names one thing to do wrong."""
    w13, w2, s13, s2 = packed
    if expert_map is not None:
        ids = expert_map[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    y = torch.zeros(x.shape)
    for e in ids[ids >= 0].unique().tolist():
        t, k = (ids == e).nonzero(as_tuple=True)
        gate, up = multiplied(x[t].float(), w13[e], s13[e], step).chunk(2, 1)
        act = torch.nn.functional.silu(gate) * up
        if step == "leaves act as it is":
            down = (act @ w2[e].float().mT) * s2[e]
        else:
            down = multiplied(act.bfloat16().float() if step == "rounds act to bfloat16" else act, w2[e], s2[e], step)
        y.index_add_(0, t, down * weights[t, k][:, None])
    return y.to(out_dtype or x.dtype)


def doing(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords, step=step)

    return wrong


def test_sums_of_integers_pass() -> None:
    verdicts = try_on("experts", experts, pack_experts=pack_experts, contract=CONTRACT, cases=int8_cases(30))
    assert all(v.passed for v in verdicts), verdicts[-1].explain()


@pytest.mark.parametrize("step", ["takes the next channel's scale", "gives up's channels gate's scales",
                                  "scales all rows alike", "cuts codes off", "holds codes in seven bits",
                                  "forgets the bias of one column", "leaves act as it is",
                                  "rounds act to bfloat16"])  # fmt: skip
def test_a_wrong_kernel_is_told(step: str) -> None:
    packs = doing(step, pack_experts)
    last = try_on("experts", doing(step, experts), pack_experts=packs, contract=CONTRACT, cases=int8_cases(20))[-1]
    assert last.outcome is Outcome.WRONG, f"{step}: {last.outcome}"
    assert "y at [" in last.explain() or "y: " in last.explain()


def test_weight_only_kernels_are_held_to_another_contract() -> None:
    """Codes of activations err by half a step of 127: a kernel must say that it makes them."""
    last = try_on("experts", experts, pack_experts=pack_experts, cases=int8_cases(20))[-1]
    assert last.outcome is Outcome.WRONG
