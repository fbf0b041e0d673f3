"""The router: drawn hidden states, judged as a discrete choice under the error of their logits."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import Bits, regime_values, strided
from minimax_m2.harness.budget import as_budgeted
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, Spoilt, by_row, narrowed
from minimax_m2.harness.ops.routing import spoilt
from minimax_m2.harness.ties import Choice
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.router_gemm import router_gemm
from minimax_m2.reference.routing import selection_scores, weights_at

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around register blocks of 2 and 6 rows, a 64-token tile and a slab of 120 rows.
    "T": (3, 0, 1, 2, 6, 7, 17, 64, 121, MANY_ROWS),
    # Around a vector register (16), M2 (256), past it, and widths that are no multiple of any register.
    "E": (8, 1, 3, 17, 64, 255, 256, 257, 384),
    "H": (64, 1, 17, 33, 192, 257, 3072),
    "K": (2, 1, 3, 4, 6, 8),
    # No regime reaches scores below float32's smallest normal number, whose sum may vanish.
    "regime": ("normal", "tiny", "equal", "signed_zero"),
    "weight_milli": (20, 5, 100),  # the weight's standard deviation in thousandths
    "bias": ("small", "none", "large"),
    "dtype": ("bfloat16", "float16", "float32"),
    "ids": ("int32", "int64"),
    "scoring": ("sigmoid", "softmax"),
    "renormalize": (1, 0),
    "valid": (0, 1),  # 1: the last third of the rows is padding
    "gap": (0, 8, 3),
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, E=17, H=33)
    return fields | {"K": min(int(fields["K"]), int(fields["E"]))}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, E, H = (case.number(name) for name in ("T", "E", "H"))
    x = regime_values(bits, "x", (T, H), case.word("regime")).to(getattr(torch, case.word("dtype")))
    # The bell's standard deviation is 1.155. The product fills float32's significand, as a trained weight does.
    weight = (bits.bell("weight", (E, H)) * (case.number("weight_milli") * 0.866e-3)).to(torch.float32)
    values = bits.bell("bias", (E,)).to(torch.float32)
    return {
        "x": strided(x, case.number("gap")),
        "weight": strided(weight, case.number("gap")),
        "bias": {"none": None, "small": values / 8, "large": values * 12}[case.word("bias")],
        "top_k": case.number("K"),
        "renormalize": bool(case.number("renormalize")),
        "scoring": case.word("scoring"),
        "indices_dtype": getattr(torch, case.word("ids")),
        "num_valid": torch.tensor(T - T // 3, dtype=torch.int32) if case.number("valid") else None,
    }


def expect(op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]) -> Choice:
    logits = router_gemm(arguments["x"], arguments["weight"], contract=contract)
    scores, selection = selection_scores(logits, arguments["bias"], scoring=arguments["scoring"], contract=contract)
    renormalize, valid = arguments["renormalize"], arguments["num_valid"]
    return Choice(
        op=op,
        dtypes=dtypes,
        selection=as_budgeted(selection),
        weigh=lambda ids: as_budgeted(weights_at(scores, ids, renormalize=renormalize, contract=contract)),
        top_k=arguments["top_k"],
        valid=case.number("T") if valid is None else int(valid),
    )


def spoil(case: Case, arguments: dict[str, Any]) -> Spoilt | None:
    """NaN in a hidden state makes every logit of its row one."""
    return spoilt(case, arguments, "x")


def cost(case: Case) -> Cost:
    T, E, H, K = (case.number(name) for name in ("T", "E", "H", "K"))
    x, index = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "ids"))
    return Cost(bytes=T * H * x + 4 * E * H + 4 * E + T * K * (4 + index), flops=2 * T * E * H)


OP = Op(
    name="router",
    outputs={"weights": "float32", "ids": "ids"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"logits": None, "scores": None, "selection": None, "weights": "float32"},
    # Logits in the model's dtype choose other experts for about 4 % of tokens: no choice, a defect.
    choices={},
    shapes={"decode": {"T": 4, "E": 256, "H": 3072, "K": 8}, "prefill": {"T": 256, "E": 256, "H": 3072, "K": 8}},
    cost=cost,
    parts=("router_gemm", "routing"),
    budgeted=("x",),
    expect=expect,
    spoil=spoil,
    rows=by_row("x"),
)
