"""SwiGLU, the gated activation of every expert, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.exponential import quick_sigmoid, sigmoid
from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import swiglu as launched

# Columns of a program: M2's 1536 are three times as many.
BLOCK = 512
# From so many tokens programs are plenty, and one that does more hides its loads better.
MANY_TOKENS = 1024


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """What comes in 16 bits meets the hardware's 2^t."""
    return {"exp_ulps": 8.0} if is_quick(getattr(torch, case["dtype"])) else {}


def is_quick(dtype: torch.dtype) -> bool:
    """Whether rounding hides a few units of the sigmoid."""
    return dtype != torch.float32


@triton.jit
def gated(gate, up):
    """gate * sigmoid(gate) * up, float32; 0 where gate is so low that its sigmoid is 0."""
    return gate * sigmoid(gate) * up


@triton.jit
def activated(gate, up, QUICK: tl.constexpr):
    """The same, within a few units where QUICK."""
    if QUICK:
        y = gate * quick_sigmoid(gate) * up
    else:
        y = gated(gate, up)
    return y


@triton.jit
def swiglu_kernel(
    gate_up_ptr, y_ptr, stride, T, I, ROWS: tl.constexpr, BLOCK: tl.constexpr, QUICK: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    i = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (t < T) & (i < I)
    row = gate_up_ptr + t * stride
    gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * I + i, activated(gate, up, QUICK).to(y_ptr.dtype.element_ty), mask=inside)


def _launch(gate_up: Tensor, y: Tensor) -> None:
    num_tokens, I = y.shape
    rows = 2 if num_tokens >= MANY_TOKENS else 1
    grid = (triton.cdiv(num_tokens, rows), triton.cdiv(I, BLOCK))
    with on_device_of(gate_up):
        swiglu_kernel[grid](
            gate_up, y, gate_up.stride(0), num_tokens, I, ROWS=rows, BLOCK=BLOCK, QUICK=is_quick(gate_up.dtype),
            num_warps=4, **chained(capability(gate_up), grid[0] * grid[1] * 4),
        )  # fmt: skip


swiglu, swiglu_out = launched.functions(registered("swiglu", _launch))
