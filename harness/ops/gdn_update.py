"""The gated delta rule with its gates: decays as their projections give them, from weak to instant."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Tensors
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops import gated_delta_rule, gdn_gating
from minimax_m2.harness.ops.rms_norm import own_dtype
from minimax_m2.harness.ops.rope import dtype_of
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.gdn_gating import gdn_gating as gates_of

GIVEN = ("decay", "beta")
"""Factors of the recurrence that the gates take the place of."""

FACTORS: dict[str, tuple[Field, ...]] = {
    **{name: values for name, values in gated_delta_rule.FACTORS.items() if name not in GIVEN},
    "gates": gdn_gating.FACTORS["regime"],
    "A_log": gdn_gating.FACTORS["A_log"],
    "dt_bias": gdn_gating.FACTORS["dt_bias"],
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    settled = gdn_gating.named(gated_delta_rule.settle(fields | {"beta": "same"}))
    return {name: value for name, value in settled.items() if name not in GIVEN}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    heads = gated_delta_rule.recurrent(case, bits)
    first = {name: heads.pop(name) for name in ("q", "k", "v")}
    gates = gdn_gating.projections(case, bits, gated_delta_rule.tokens(case, bits), case.word("gates"))
    return first | gates | heads


def expect(
    op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]
) -> Tensors:
    rest = dict(arguments)
    g, beta = gates_of(*(rest.pop(name) for name in ("A_log", "a", "b", "dt_bias")), contract=contract)
    return gated_delta_rule.expect(op, case, rest | {"g": g, "beta": beta}, contract, dtypes)


def contract(case: Case) -> dict[str, Any]:
    """Nothing is rounded between gates and recurrence, as fused kernels keep it."""
    return {"exp_b": None, "beta": None, "l2norm_eps": 1e-6, "eps_place": None, "out": own_dtype(case)}


def cost(case: Case) -> Cost:
    return gated_delta_rule.recurrence_cost(case, gate_bytes=2 * dtype_of(case, "dtype").itemsize)


OP = Op(
    name="gdn_update",
    outputs={"o": "dtype", "state": "float32"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices={**gdn_gating.OP.choices, **gated_delta_rule.OP.choices},
    shapes=gated_delta_rule.OP.shapes,
    cost=cost,
    parts=("gdn_gating", "gated_delta_rule"),
    budgeted=("q", "k", "v", "a", "b", "A_log"),
    mutates=("state",),
    expect=expect,
    pieces=gated_delta_rule.pieces,
    narrow_from=gated_delta_rule.OP.narrow_from,
)
