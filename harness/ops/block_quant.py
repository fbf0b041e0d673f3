"""Quantisation of activations in groups: groups of zeros, below the floor, and on the ties of e4m3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, by_row
from minimax_m2.harness.ops import rms_norm

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (1, 0, 2, 5, 33, MANY_ROWS),
    # Around one register and one group, widths whose last group is short, M2's expert and hidden widths.
    "H": (8, 1, 17, 127, 128, 129, 192, 256, 300, 1536, 3072),
    "group": (128, 64, 32, 7),
    "regime": (*REGIMES, "ties", "zero_groups", "below_floor"),
    "scale_format": ("float32", "ue8m0"),
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8, 3),
}


def ties(case: Case, bits: Bits) -> Tensor:
    """Multiples of a group's scale that lie half-way between two codes, all exact in bfloat16.

    The scale is 7 or 11, whose reciprocals round up: multiplying by one moves some of the ties, dividing moves none.
    """
    T, H, group = (case.number(name) for name in ("T", "H", "group"))
    seven = bits.integers("scale", (T, -(-H // group)), 0, 1).repeat_interleave(group, -1)[:, :H] == 0
    # Odd fifth bits: 17 to 35 times 7, or 17 to 23 times 11, stay below 2^8, bfloat16's significand.
    half_way = torch.where(seven, bits.integers("of 7", (T, H), 8, 15), bits.integers("of 11", (T, H), 8, 11)) * 2 + 1
    first = torch.arange(H) % group == 0
    codes = torch.where(first, 448, half_way) * (1 - 2 * bits.integers("sign", (T, H), 0, 1))
    return codes.double() * torch.where(seven, 7.0, 11.0) / 64


def values(case: Case, bits: Bits) -> Tensor:
    """float64 ``[T, H]``."""
    shape, regime = (case.number("T"), case.number("H")), case.word("regime")
    if regime == "ties":
        return ties(case, bits)
    if regime == "zero_groups":
        odd = torch.arange(shape[1]) // case.number("group") % 2 == 1
        return regime_values(bits, "x", shape, "normal") * (odd | (torch.arange(shape[0])[:, None] % 3 == 1))
    if regime == "below_floor":
        # Magnitudes around the floor of 1e-10; float16 holds them as zeros.
        return regime_values(bits, "x", shape, "normal") * 2.0**-34
    return regime_values(bits, "x", shape, regime)


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {
        "x": rms_norm.in_case(case, values(case, bits)),
        "group": case.number("group"),
        "scale_format": case.word("scale_format"),
    }


def cost(case: Case) -> Cost:
    T, H, group = (case.number(name) for name in ("T", "H", "group"))
    return Cost(bytes=T * H * (rms_norm.element_bytes(case) + 1) + 4 * T * -(-H // group), flops=3 * T * H)


OP = Op(
    name="block_quant",
    outputs={"q": "float8_e4m3fn", "scale": "float32"},
    factors=FACTORS,
    settle=rms_norm.settle,
    inputs=inputs,
    # float32 arithmetic has rounded the scale already.
    contract=lambda case: {"scale": None, "reciprocal": None},
    choices={
        "scale": {"float32": "SGLang:python/sglang/srt/layers/quantization/fp8_kernel.py"},
        "reciprocal": {"float32": "vLLM:csrc/moe/minimax_m2_topk_quant_kernels.cu"},
    },
    shapes={"decode": {"T": 4, "H": 3072}, "prefill": {"T": 256, "H": 3072}},
    cost=cost,
    budgeted=("x",),
    rows=by_row("x"),
)
