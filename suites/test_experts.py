"""Experts: a float32 loop passes; each way engines have got them wrong is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def pack_experts(w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
                 block: tuple[int, int] | None = None, step: str = "") -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Weights in float32, and the group of quantised activations."""
    rows, columns = block or ((1, 2**20) if w13.dtype == torch.int8 else (128, 128))

    def widened(w: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return w.bfloat16().float() if step == "casts weights to bfloat16" else w.float()
        row, column = torch.arange(w.shape[1]) // rows, torch.arange(w.shape[2]) // columns
        if step == "starts up's scales at a whole block" and w is w13:
            half = torch.arange(w.shape[1] // 2) // rows
            row = torch.cat([half, half + -(-w.shape[1] // 2 // rows)]).clamp(max=scale.shape[1] - 1)
        each = scale[:, row][:, :, column]
        return w.float() / each if step == "divides by the scale" else w.float() * each

    return widened(w13, w13_scale), widened(w2, w2_scale), columns


def experts(x: Tensor, packed: tuple[Tensor, Tensor, int], weights: Tensor | None, ids: Tensor, *,
            expert_map: Tensor | None = None, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
            step: str = "") -> Tensor:  # fmt: skip
    """Experts in float32 torch; ``step`` names one thing to do wrong."""
    (w13, w2, group), model_dtype = packed, x.dtype if x_scale is None else out_dtype
    if weights is None:
        weights, ids = (ids << 16).view(torch.float32), ids >> 16
    if step == "reads int64 ids as int32" and ids.dtype == torch.int64:
        ids = ids.view(torch.int32)[:, : ids.shape[1]]
    if expert_map is not None and step != "ignores expert_map":
        ids = expert_map[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    x = x.float() if x_scale is None else x.float() * x_scale.repeat_interleave(group, 1)[:, : x.shape[1]]
    y = torch.full(x.shape, 0.5 if step == "adds into memory it did not clear" else 0.0)
    for t, k in (ids >= (len(w13) * -1 if step == "takes -1 for an index" else 0)).nonzero().tolist():
        e = int(ids[t, k]) % len(w13)
        gate, up = (w13[e] @ x[t]).chunk(2)
        if step == "swaps gate and up":
            gate, up = up, gate
        act = (torch.nn.functional.silu(gate) * up).to(model_dtype).float()
        y[t] += (w2[e] @ act) * weights[t, k].nan_to_num()
    return y.to(out_dtype or x.dtype)


def doing(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords, step=step)

    return wrong


def test_a_correct_float32_loop_passes() -> None:
    assert all(v.passed for v in try_on("experts", experts, pack_experts=pack_experts, cases=200))


@pytest.mark.parametrize("step", ["swaps gate and up", "takes -1 for an index", "reads int64 ids as int32",
                                  "adds into memory it did not clear", "ignores expert_map",
                                  "starts up's scales at a whole block", "divides by the scale",
                                  "casts weights to bfloat16"])  # fmt: skip
def test_a_wrong_kernel_is_told_with_its_worst_element(step: str) -> None:
    pack = doing(step, pack_experts)
    last = try_on("experts", doing(step, experts), pack_experts=pack)[-1]
    # The weight of the id -1 is memory that nobody owns.
    assert last.outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER, Outcome.OUTSIDE)
    assert "y at [" in last.explain() or "y: " in last.explain()
