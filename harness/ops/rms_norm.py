"""RMSNorm: rows around every register width, with statistics down to the size of epsilon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, by_row, narrowed

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (1, 0, 2, 5, 33, MANY_ROWS),
    # Around one and four registers of every instruction set, widths that are no multiple of any, M2's.
    "H": (8, 1, 2, 15, 16, 17, 33, 64, 65, 129, 257, 1024, 3072),
    "regime": (*REGIMES, "zero_rows"),
    "weight_milli": (20, 5, 100, 1000),  # the weight's standard deviation in thousandths; 1000: spread around 1
    "dtype": ("bfloat16", "float16", "float32"),
    "eps": (6, 5),  # M2 adds 1e-6
    "gap": (0, 8, 3),
}

# The engines whose conventions differ: two roundings and one.
VLLM, SGLANG = "vLLM:csrc/layernorm_kernels.cu", "SGLang:sgl-kernel/csrc/cpu/norm.cpp"


def rows(case: Case, bits: Bits, name: str, width: int) -> Tensor:
    """Activations ``[T, width]`` of the case's regime, float64; in ``zero_rows`` every third row is 0."""
    shape, regime = (case.number("T"), width), case.word("regime")
    values = regime_values(bits, name, shape, "normal" if regime == "zero_rows" else regime)
    if regime == "zero_rows":
        values = values * (torch.arange(shape[0])[:, None] % 3 != 0)
    if case.word("dtype") == "float32" and regime != "equal":
        # Fill float32's significand: of a thousand values many would repeat, and their errors with them.
        values = values * (1 + bits.uniform(f"{name}/fine", shape) / 64)
    return values


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    """Many rows are narrow."""
    return fields if int(fields["T"]) < 1024 else narrowed(fields, H=8)


def in_case(case: Case, x: Tensor) -> Tensor:
    """Rounded to the case's dtype, rows ``gap`` elements apart."""
    return strided(x.to(getattr(torch, case.word("dtype"))), case.number("gap"))


def norm_weight(case: Case, bits: Bits) -> Tensor:
    """``[H]``; the bell's standard deviation is 1.155."""
    milli, bell = case.number("weight_milli"), bits.bell("weight", (case.number("H"),))
    weight = 1 + bell / 8 if milli == 1000 else bell * (milli * 0.866e-3)
    return weight.to(getattr(torch, case.word("dtype")))


def own_dtype(case: Case) -> str | None:
    """The rounding of a result; float32 arithmetic has rounded a float32 result already."""
    return None if case.word("dtype") == "float32" else case.word("dtype")


def element_bytes(case: Case) -> int:
    return torch.empty(0, dtype=getattr(torch, case.word("dtype"))).element_size()


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {
        "x": in_case(case, rows(case, bits, "x", case.number("H"))),
        "weight": norm_weight(case, bits),
        "eps": 10.0 ** -case.number("eps"),
    }


def cost(case: Case) -> Cost:
    T, H = case.number("T"), case.number("H")
    return Cost(bytes=(2 * T + 1) * H * element_bytes(case), flops=4 * T * H)


OP = Op(
    name="rms_norm",
    outputs={"y": "dtype"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"normalised": None, "out": own_dtype(case)},
    choices={"normalised": {"dtype": VLLM, "float32": SGLANG}, "out": {"dtype": VLLM}},
    shapes={"decode": {"T": 4, "H": 3072}, "prefill": {"T": 256, "H": 3072}},
    cost=cost,
    budgeted=("x",),
    rows=by_row("x"),
)
