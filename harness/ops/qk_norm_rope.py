"""QK norm and rotary embedding fused, and the sums of squares that ranks exchange for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op, by_row
from minimax_m2.harness.ops import rope
from minimax_m2.harness.ops.rope import MODEL_DTYPE, ROTATION, ROTATION_CHOICES, channels, dtype_of, positions, table

EPS = 1e-6
# A group of three ranks: a number that divides neither the heads nor the widths by accident.
RANKS = 3

FACTORS: dict[str, tuple[Field, ...]] = ROTATION | {
    # one rank; its own sums handed in; sums that include other ranks; a rank whose last heads are padding
    "stats": ("none", "given", "others", "padded"),
    "weights": ("float32", "model"),
    "regime": REGIMES,
}

SUM_FACTORS: dict[str, tuple[Field, ...]] = {
    name: values for name, values in FACTORS.items() if name in ("T", "Hq", "Hk", "D", "regime", "dtype", "gap")
} | {"counted": (-1, 0, 1, 2)}  # -1: all key/value heads, by leaving the argument out


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    if fields["regime"] == "equal":
        # Rows of equal values normalise to one and the same row, which would round alike T times; and a sum of equal
        # values rounds one way, which a budget knows only where no padding stands between them.
        stats = "none" if fields["stats"] == "padded" else fields["stats"]
        fields = fields | {"T": min(1, int(fields["T"])), "stats": stats}
    return rope.settle(fields)


def settle_sum(fields: dict[str, Field]) -> dict[str, Field]:
    return fields | {"counted": min(int(fields["counted"]), int(fields["Hk"]))}


def sizes(case: Case) -> dict[str, int]:
    """The keywords that cut qkv into heads."""
    names = {"num_heads": "Hq", "num_kv_heads": "Hk", "head_dim": "D"}
    return {keyword: case.number(symbol) for keyword, symbol in names.items()}


def row_values(case: Case, bits: Bits) -> Tensor:
    """float64 ``[T, (Hq + 2*Hk)*D]``."""
    Hq, Hk, D = (case.number(name) for name in ("Hq", "Hk", "D"))
    return channels(case, bits, "qkv", (Hq + 2 * Hk) * D)


def sum_inputs(case: Case, bits: Bits) -> dict[str, Any]:
    counted = case.number("counted")
    return {
        "qkv": strided(row_values(case, bits).to(dtype_of(case, "dtype")), case.number("gap")),
        **sizes(case),
        "counted_kv_heads": None if counted < 0 else counted,
    }


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    Hq, Hk, D, kind = case.number("Hq"), case.number("Hk"), case.number("D"), case.word("stats")
    dtype = dtype_of(case, "dtype")
    weight_dtype = dtype if case.word("weights") == "model" else torch.float32
    qkv = row_values(case, bits)
    q_heads, k_heads = Hq, Hk
    if kind == "padded":
        q_heads, k_heads = max(1, Hq - 1), max(1, Hk - 1)
        qkv[:, q_heads * D : Hq * D] = 0.0
        qkv[:, (Hq + k_heads) * D : (Hq + Hk) * D] = 0.0
    ranks = RANKS if kind == "others" else 1
    return {
        "qkv": strided(qkv.to(dtype), case.number("gap")),
        "stats": statistics(case, bits, qkv.to(dtype).double()) if kind in ("given", "others") else None,
        "q_weight": weight(bits, "q_weight", Hq * D).to(weight_dtype),
        "k_weight": weight(bits, "k_weight", Hk * D).to(weight_dtype),
        "cos_sin": table(case, bits),
        "positions": positions(case, bits),
        **sizes(case),
        "rotary_dim": case.number("R"),
        "q_width": ranks * q_heads * D,
        "k_width": ranks * k_heads * D,
        "eps": EPS,
    }


def weight(bits: Bits, name: str, width: int) -> Tensor:
    """Norm weights around 1, with digits beyond those of the 16-bit formats."""
    return 1 + bits.bell(name, (width,)) / 8 + bits.uniform(f"{name}/fine", (width,)) / 64


def statistics(case: Case, bits: Bits, qkv: Tensor) -> Tensor:
    """``[T, 2]`` float32: this rank's sums, and those of two others that are up to four times as large."""
    Hq, Hk, D = (case.number(name) for name in ("Hq", "Hk", "D"))
    q, k, _ = qkv.split([Hq * D, Hk * D, Hk * D], -1)
    # Added as integers, so that no machine's order of summation shows in the bits of the case.
    own = torch.stack([(x * 2.0**16).round().long().square().sum(-1) for x in (q, k)], -1).double() / 2.0**32
    share = 1 + 3 * bits.uniform("others", tuple(own.shape))
    return (own * (1 + share) if case.word("stats") == "others" else own).to(torch.float32)


def contract(case: Case) -> dict[str, Any]:
    return {
        "stats": "float32", "rstd": "float32", "eps_on": "mean", "normalised": None,
        "cos_sin": None, "products": None, "out": case.word("dtype"),
    }  # fmt: skip


CHOICES: dict[str, dict[Any, str]] = ROTATION_CHOICES | {
    "eps_on": {"sum": "SGLang:python/sglang/jit_kernel/csrc/distributed/tp_qknorm.cuh"},
    # The NPU operator, as every pair of unfused kernels, stores the norm in the model's dtype.
    "normalised": dict.fromkeys(
        MODEL_DTYPE, "sgl-kernel-npu:python/sgl_kernel_npu/sgl_kernel_npu/norm/split_qkv_tp_rmsnorm_rope.py"
    )
    | {"float32": "vLLM:csrc/libtorch_stable/minimax_reduce_rms_kernel.cu"},
}


def cost(case: Case) -> Cost:
    T, Hq, Hk, D, R = (case.number(name) for name in ("T", "Hq", "Hk", "D", "R"))
    width = (Hq + 2 * Hk) * D
    weight = dtype_of(case, "dtype") if case.word("weights") == "model" else torch.float32
    moved = 2 * T * width * dtype_of(case, "dtype").itemsize + (Hq + Hk) * D * weight.itemsize
    table_bytes = T * R * dtype_of(case, "table").itemsize
    return Cost(bytes=moved + table_bytes, flops=T * (Hq + Hk) * (4 * D + 3 * R))


def sum_cost(case: Case) -> Cost:
    T, Hq, Hk, D = (case.number(name) for name in ("T", "Hq", "Hk", "D"))
    counted = Hk if case.number("counted") < 0 else case.number("counted")
    width = (Hq + counted) * D
    return Cost(bytes=T * width * dtype_of(case, "dtype").itemsize + 8 * T, flops=2 * T * width)


M2: dict[str, Field] = {"Hq": 48, "Hk": 8, "D": 128}

OPS = (
    Op(
        name="qk_sum_squares",
        stem="qk_norm_rope",
        outputs={"stats": "float32"},
        factors=SUM_FACTORS,
        settle=settle_sum,
        inputs=sum_inputs,
        contract=lambda case: {"stats": "float32"},
        choices={},
        shapes={"decode": {"T": 16, **M2}, "prefill": {"T": 128, **M2}},
        cost=sum_cost,
        budgeted=("qkv",),
    ),
    Op(
        name="qk_norm_rope",
        outputs={"q": "dtype", "k": "dtype", "v": "dtype"},
        factors=FACTORS,
        settle=settle,
        inputs=inputs,
        contract=contract,
        choices=CHOICES,
        shapes={"decode": {"T": 16, **M2}, "prefill": {"T": 128, **M2}},
        cost=cost,
        parts=("qk_sum_squares", "rope"),
        budgeted=("qkv", "stats"),
        contiguous=("q", "k", "v"),
        rows=by_row("qkv", "stats", "positions"),
    ),
)
