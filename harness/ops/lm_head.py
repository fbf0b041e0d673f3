"""Logits over the vocabulary: the chosen rows, the true columns, float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, narrowed

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around register blocks of 2 and 6 rows.
    "T": (3, 0, 1, 2, 6, 7, 17, 65, MANY_ROWS),
    # Around blocks of 4 and 8 columns and a block of weight.
    "V": (8, 1, 3, 17, 48, 255, 257, 384),
    # Rows of padding behind the vocabulary, poisoned: vLLM pads to 64, uneven shards to anything.
    "padding": (0, 1, 7, 64),
    "H": (64, 1, 17, 31, 33, 192, 257, 3072),
    "rows": ("none", "int32", "int64"),
    "N": (1, 2, 5, 8),  # chosen rows, in any order and with repetition
    "regime": REGIMES,
    "weight_milli": (20, 5, 100),  # the weight's standard deviation in thousandths
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8, 3),
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, V=9, H=33)
    everything = fields["rows"] == "none" or fields["T"] == 0
    return fields | {"N": fields["T"] if everything else fields["N"]}


def chosen(case: Case, bits: Bits) -> Tensor | None:
    T, N = case.number("T"), case.number("N")
    if case.word("rows") == "none":
        return None
    rows = bits.integers("rows", (N,), 0, max(0, T - 1))
    return rows.to(getattr(torch, case.word("rows")))


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, V, H = (case.number(name) for name in ("T", "V", "H"))
    dtype = getattr(torch, case.word("dtype"))
    x = regime_values(bits, "x", (T, H), case.word("regime")).to(dtype)
    # The bell's standard deviation is 1.155. The product fills the significand, as a trained weight does.
    weight = bits.bell("weight", (V, H)) * (case.number("weight_milli") * 0.866e-3)
    padding = torch.full((case.number("padding"), H), torch.nan, dtype=torch.float64)
    return {
        "x": strided(x, case.number("gap")),
        "weight": strided(torch.cat([weight, padding]).to(dtype), case.number("gap")),
        "rows": chosen(case, bits),
        "vocab_size": V,
    }


def cost(case: Case) -> Cost:
    N, V, H = (case.number(name) for name in ("N", "V", "H"))
    width = torch.empty(0, dtype=getattr(torch, case.word("dtype"))).element_size()
    return Cost(bytes=(N * H + V * H) * width + 4 * N * V, flops=2 * N * V * H)


OP = Op(
    name="lm_head",
    outputs={"logits": "float32"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"out": None},
    # It multiplies in the model's dtype and casts the logits afterwards.
    choices={"out": {"dtype": "vLLM:vllm/model_executor/layers/logits_processor.py"}},
    # A 48th of the vocabulary: the whole weight would take gigabytes to draw.
    shapes={
        "decode": {"T": 4, "V": 4168, "H": 3072},
        "prefill": {"T": 256, "V": 4168, "H": 3072, "rows": "int64", "N": 8},
    },
    cost=cost,
    budgeted=("x",),
)
