"""Rotary embedding: every pairing, width, position and stride that engines have got wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, narrowed

# The last is odd and beyond 2048: neither bfloat16 nor float16 holds it, nor does a byte hold most.
NUM_POSITIONS = 2052

# What rope has in common with the fusions it is a part of.
ROTATION: dict[str, tuple[Field, ...]] = {
    # Tokens are independent: one, a pair, and more than any number of threads.
    "T": (1, 0, 2, 3, 16),
    "Hq": (6, 1, 2, 48),
    "Hk": (1, 2, 8),
    "D": (128, 64, 96),
    # Half of M2's head, less, the whole head (128 and above), and halves shorter than any register.
    "R": (64, 32, 128, 6),
    # Equal channels have equal products, whose roundings a pair would share; the norm's weights tell them apart.
    "regime": tuple(regime for regime in REGIMES if regime != "equal"),
    "dtype": ("bfloat16", "float16", "float32"),
    "table": ("float32", "bfloat16"),
    "positions": ("int64", "int32"),
    "where": ("spread", "start", "end"),
    "gap": (0, 8, 3),
    "table_gap": (0, 8, 3),
}

# Model dtype, by whatever name, or float32 (None: nothing but the arithmetic rounds).
MODEL_DTYPE = ("dtype", "bfloat16", "float16")
ROTATION_CHOICES: dict[str, dict[Any, str]] = {
    # vLLM casts the table to the model's dtype.
    "cos_sin": dict.fromkeys(MODEL_DTYPE, "vLLM:vllm/model_executor/layers/rotary_embedding/base.py")
    | {"float32": "SGLang:python/sglang/srt/layers/rotary_embedding.py"},
    # vLLM computes in scalar_t.
    "products": dict.fromkeys(MODEL_DTYPE, "vLLM:csrc/pos_encoding_kernels.cu")
    | {"float32": "FlashInfer:include/flashinfer/pos_enc.cuh"},
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, Hq=2, Hk=1, D=64)
    return fields | {"R": min(int(fields["R"]), int(fields["D"]))}


def dtype_of(case: Case, field: str) -> torch.dtype:
    """The dtype that a case field names."""
    found = getattr(torch, case.word(field))
    if not isinstance(found, torch.dtype):
        raise ValueError(f"case field {field}={case.word(field)!r} names no dtype of torch")
    return found


def table(case: Case, bits: Bits) -> Tensor:
    """``[P, R]`` points of the unit circle, cosines then sines; position 0 turns nothing.

    A rational parametrisation in place of cos and sin, whose last bits differ between libraries.
    """
    shape = (NUM_POSITIONS, case.number("R") // 2)
    t = bits.uniform("slope", shape) * 2 - 1
    side = bits.integers("side", shape, 0, 1) * 2 - 1
    cos, sin = side * (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    cos[0], sin[0] = 1.0, 0.0
    return strided(torch.cat([cos, sin], -1).to(dtype_of(case, "table")), case.number("table_gap"))


def positions(case: Case, bits: Bits) -> Tensor:
    """``[T]``: anywhere, from 0 on, or all at the table's last row."""
    T, where = case.number("T"), case.word("where")
    found = {
        "spread": bits.integers("positions", (T,), 0, NUM_POSITIONS - 1),
        "start": torch.arange(T) % NUM_POSITIONS,
        "end": torch.full((T,), NUM_POSITIONS - 1),
    }[where]
    return found.to(dtype_of(case, "positions"))


def channels(case: Case, bits: Bits, name: str, width: int) -> Tensor:
    """float64 ``[T, width]`` of the case's regime, with more digits than any 16-bit format keeps.

    Values of few digits times a bfloat16 table would round on a grid of few phases, which is no uniform noise.
    """
    shape, regime = (case.number("T"), width), case.word("regime")
    fine = bits.uniform(f"{name}/fine", (*shape[:1], 1 if regime == "equal" else width))
    return regime_values(bits, name, shape, regime) * (1 + fine / 64)


def heads(case: Case, bits: Bits, name: str, count: int) -> Tensor:
    """``[T, heads, D]`` values whose rows lie ``gap`` elements apart, as a slice of qkv's do."""
    D = case.number("D")
    rows = channels(case, bits, name, count * D)
    return strided(rows.to(dtype_of(case, "dtype")), case.number("gap")).unflatten(-1, (count, D))


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {
        "q": heads(case, bits, "q", case.number("Hq")),
        "k": heads(case, bits, "k", case.number("Hk")),
        "cos_sin": table(case, bits),
        "positions": positions(case, bits),
        "rotary_dim": case.number("R"),
    }


def cost(case: Case) -> Cost:
    T, Hq, Hk, D, R = (case.number(name) for name in ("T", "Hq", "Hk", "D", "R"))
    table_bytes = T * R * dtype_of(case, "table").itemsize
    moved = 2 * T * (Hq + Hk) * D * dtype_of(case, "dtype").itemsize
    return Cost(bytes=moved + table_bytes, flops=3 * T * (Hq + Hk) * R)


OP = Op(
    name="rope",
    outputs={"q": "dtype", "k": "dtype"},
    factors=ROTATION | {"T": (*ROTATION["T"], MANY_ROWS)},
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"cos_sin": None, "products": None, "out": case.word("dtype")},
    choices=ROTATION_CHOICES,
    shapes={"decode": {"T": 16, "Hq": 48, "Hk": 8}, "prefill": {"T": 128, "Hq": 48, "Hk": 8}},
    cost=cost,
    budgeted=("q", "k"),
)
