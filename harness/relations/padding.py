"""Padding: rows behind the last that captured graphs bring along change nothing, and nothing comes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op
from minimax_m2.harness.relation import Arguments, Change, Relation
from minimax_m2.harness.relations.rows import CACHED, ROWS, picked

PADDED = 3
# What says of a row that it is padding: -1 in it, or how many rows are none. The queries of attention end where
# query_start does.
MARKED = {"experts": "ids", "kv_cache": "slots", "qk_norm_rope_cache": "slots"}
COUNTED = ("routing", "router")
EMPTY = ("attention", "experts", *COUNTED)
"""Ops whose result says that a row is padding: 0, and no expert."""


def padded(op: Op, case: Case, given: Arguments) -> Change | None:
    """Three more rows, copies of the first."""
    names = {**ROWS, **CACHED, "attention": ("q",)}[op.name]
    count = len(given[names[0]])
    if not count or given.get("num_valid") is not None:
        return None
    order = torch.cat([torch.arange(count), torch.zeros(PADDED, dtype=torch.int64)])
    longer = {name: picked(given[name], order) for name in names if isinstance(given.get(name), Tensor)}
    if op.name in MARKED:
        longer[MARKED[op.name]][count:] = -1
    if isinstance(longer.get("weights"), Tensor):
        longer["weights"][count:] = torch.nan
    if op.name in COUNTED:
        longer["num_valid"] = torch.tensor(count, dtype=torch.int32)
    returned = len(op.outputs) - len(op.mutates)

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        return (*(o[:count] for o in outputs[:returned]), *outputs[returned:])

    return Change(given | longer, undo)


def empty(op: Op, case: Case, outputs: Outputs) -> str:
    """Nothing comes of a row of padding."""
    for name, output in zip(op.outputs, outputs, strict=True):
        nothing = -1 if name == "ids" else 0
        if op.name in EMPTY and not bool((output[-PADDED:] == nothing).all()):
            return f"{name} of a row of padding is not {nothing}"
    return ""


RELATIONS = (Relation(name="padding rows", ops=("attention", *COUNTED, *MARKED), transform=padded, demands=empty),)
