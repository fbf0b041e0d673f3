"""Routing: drawn logits around every tie and tile edge, judged as a discrete choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits, strided
from minimax_m2.harness.budget import as_budgeted
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, Spoilt, by_row, narrowed
from minimax_m2.harness.ties import Choice, implausible
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.routing import pack_routing, selection_scores, weights_at

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around one row, a pair of rows, a cache line of rows, the 64-token tile and the ends of grids.
    "T": (1, 0, 2, 3, 8, 17, 64, 65, 1025, MANY_ROWS),
    # Around a vector register (16), M2 (256), past it, and widths that are no multiple of any register.
    "E": (8, 1, 3, 16, 17, 48, 64, 255, 256, 257, 384, 1024),
    "K": (2, 1, 3, 4, 5, 6, 7, 8, 12, 16, 31, 32),
    "regime": ("normal", "near_tie", "exact_tie", "equal", "underflow", "large"),
    "bias": ("small", "none", "zero", "large", "below"),
    "dtype": ("float32", "bfloat16", "float16"),
    "ids": ("int32", "int64"),
    "scoring": ("sigmoid", "softmax"),
    "renormalize": (1, 0),
    "eps": (0, 1),  # 1: the 1e-20 that FlashInfer and the NPU operator add
    "scale": (1, 2),
    "valid": (0, 1),  # 1: the last third of the rows is padding
    "gap": (0, 8, 3),
}

SGLANG = "SGLang:python/sglang/srt/layers/moe/topk.py"


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, E=33, K=8)
    return fields | {"K": min(int(fields["K"]), int(fields["E"]))}


def logits_of(case: Case, bits: Bits) -> Tensor:
    """float64 logits ``[T, E]``; but in "underflow", scores stay above float32's smallest normal number."""
    T, E, regime = case.number("T"), case.number("E"), case.word("regime")
    normal = bits.bell("logits", (T, E)) * 2
    if regime == "normal":
        return normal
    if regime == "large":
        return normal * 8
    if regime == "equal":
        return normal[:, :1].expand(T, E).clone() if E else normal
    if regime == "exact_tie":
        # Few distinct values, so that the boundary of the chosen set falls inside a tie.
        return bits.integers("tie", (T, E), -2, 2).double()
    if regime == "near_tie":
        # Neighbours one unit in the last place apart, in the format of the logits.
        step = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[case.word("dtype")]
        return 1.0 + step * bits.integers("tie", (T, E), 0, 3).double()
    if regime == "underflow":
        # Sigmoids of 1e-35 down to 4e-38, just above float32's smallest normal number; in every third row all are 0.
        deep = torch.where(bits.integers("deep", (T, E), 0, 3) == 0, -86.0, -78.0 + normal)
        return torch.where(torch.arange(T)[:, None] % 3 == 2, -200.0 + normal, deep)
    raise ValueError(f"regime={regime!r} of routing is unknown")


def bias_of(case: Case, bits: Bits) -> Tensor | None:
    kind, E = case.word("bias"), case.number("E")
    values = bits.bell("bias", (E,))
    return {
        "none": None,
        "zero": torch.zeros(E),
        "small": values / 8,
        "large": values * 12,
        # Every biased score is below -1: an arg max that starts at -1 or 0 finds nothing.
        "below": values / 8 - 8,
    }[kind]


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, K = case.number("T"), case.number("K")
    logits = logits_of(case, bits).to(getattr(torch, case.word("dtype")))
    bias = bias_of(case, bits)
    return {
        "logits": strided(logits, case.number("gap")),
        "bias": None if bias is None else bias.to(torch.float32),
        "top_k": K,
        "renormalize": bool(case.number("renormalize")),
        "scoring": case.word("scoring"),
        "scale": float(case.number("scale")),
        "eps": 1e-20 if case.number("eps") else 0.0,
        "indices_dtype": getattr(torch, case.word("ids")),
        "num_valid": torch.tensor(T - T // 3, dtype=torch.int32) if case.number("valid") else None,
    }


def expect(op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]) -> Choice:
    scores, selection = selection_scores(
        arguments["logits"], arguments["bias"], scoring=arguments["scoring"], contract=contract
    )
    keywords = {name: arguments[name] for name in ("renormalize", "scale", "eps")}
    valid = arguments["num_valid"]
    return Choice(
        op=op,
        dtypes=dtypes,
        selection=as_budgeted(selection),
        weigh=lambda ids: as_budgeted(weights_at(scores, ids, **keywords, contract=contract)),
        top_k=arguments["top_k"],
        valid=case.number("T") if valid is None else int(valid),
        largest=arguments["scale"],
    )


def spoil(case: Case, arguments: dict[str, Any]) -> Spoilt | None:
    """NaN in one logit of a row, and in all of another's."""
    return spoilt(case, arguments, "logits")


def spoilt(case: Case, arguments: dict[str, Any], name: str) -> Spoilt | None:
    """Set one element of one row of an argument to NaN, and all of the next row's where there are two and a third."""
    x, seed, T, valid = arguments[name], case.number("seed"), case.number("T"), arguments["num_valid"]
    used = T if valid is None else int(valid)
    if used == 0:
        return None
    one, all_ = seed % used, (seed + 1) % used
    x[one, seed % x.shape[1]] = torch.nan
    if used > 2:
        x[all_] = torch.nan
    rows = torch.zeros(T, dtype=torch.bool)
    rows[[one, all_] if used > 2 else [one]] = True
    E = case.number("E")
    return Spoilt(arguments, rows, "NaN", lambda outputs: implausible(outputs[0], outputs[1], rows, E))


def cost(case: Case) -> Cost:
    T, E, K = (case.number(name) for name in ("T", "E", "K"))
    logit, index = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "ids"))
    return Cost(bytes=T * E * logit + 4 * E + T * K * (4 + index), flops=T * E * 2)


OP = Op(
    name="routing",
    outputs={"weights": "float32", "ids": "ids"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"logits": None, "scores": None, "selection": None, "weights": "float32"},
    # vLLM's apply_sigmoid returns the dtype of the logits. Logits, bias and biased scores in 16 bits were defects where
    # they occurred (sglang#33764, sglang#37133, TensorRT-LLM#13328).
    choices={
        "logits": {"float32": SGLANG},
        "scores": {"float32": SGLANG, "dtype": "vLLM:csrc/moe/grouped_topk_kernels.cu"},
        "selection": {"float32": SGLANG},
    },
    shapes={"decode": {"T": 4, "E": 256, "K": 8}, "prefill": {"T": 256, "E": 256, "K": 8}},
    cost=cost,
    budgeted=("logits",),
    expect=expect,
    spoil=spoil,
    rows=by_row("logits"),
)

PACKING_FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (1, 0, 2, 3, 17, 65, MANY_ROWS),
    "K": (2, 1, 3, 8, 32),
    "E": (8, 1, 256, 1024, 32768),  # 32768: the largest id that 16 bits of a signed word hold is reached
    "start": (0, 1),  # 1: the second half of the experts is local, others become negative words
    "ids": ("int32", "int64"),
}


def packing_inputs(case: Case, bits: Bits) -> dict[str, Any]:
    """Weights of both signs with 16 bits, so that every rounding to 8 occurs, ties too; a quarter of the ids are -1."""
    shape, E = (case.number("T"), case.number("K")), case.number("E")
    ids = bits.integers("ids", shape, 0, E - 1)
    ids = ids.masked_fill(bits.integers("none", shape, 0, 3) == 0, -1)
    return {
        "weights": (bits.integers("weights", shape, -(2**15), 2**15) / 2**15).to(torch.float32),
        "ids": ids.to(getattr(torch, case.word("ids"))),
        "expert_start": E // 2 if case.number("start") else 0,
    }


def unpacking_inputs(case: Case, bits: Bits) -> dict[str, Any]:
    given = packing_inputs(case, bits)
    start = given["expert_start"]
    return {"packed": pack_routing(given["weights"], given["ids"], expert_start=start), "expert_start": start}


def packing_cost(case: Case) -> Cost:
    index = 8 if case.word("ids") == "int64" else 4
    return Cost(bytes=case.number("T") * case.number("K") * (4 + index + 4), flops=0)


def packing(name: str, inputs: Callable[[Case, Bits], dict[str, Any]], outputs: dict[str, str]) -> Op:
    return Op(
        name=name,
        stem="routing",
        outputs=outputs,
        factors=PACKING_FACTORS,
        inputs=inputs,
        contract=lambda case: {},
        choices={},
        shapes={"decode": {"T": 4, "E": 256, "K": 8}, "prefill": {"T": 256, "E": 256, "K": 8}},
        cost=packing_cost,
    )


OPS = (
    OP,
    packing("pack_routing", packing_inputs, {"packed": "int32"}),
    packing("unpack_routing", unpacking_inputs, {"weights": "float32", "ids": "int32"}),
)
