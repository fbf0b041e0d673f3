"""Positions count from anywhere: scores hang on distances alone.

A shift of all positions turns every pair of channels by an angle of its own, the same in q and k, and products of q and
k keep their value. A quarter turn is the shift whose table is exact in every format: cosines become minus the sines,
and sines the cosines. The turned results, turned back, are those of the unshifted call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op
from minimax_m2.harness.relation import Arguments, Change, Relation
from minimax_m2.harness.relations.labels import ROTATING
from minimax_m2.harness.relations.rows import picked


def quarter_turn_on(op: Op, case: Case, given: Arguments) -> Change | None:
    """Every row of the table a quarter turn further."""
    table, rotary_dim = given["cos_sin"], given["rotary_dim"]
    if not len(given["positions"]):
        return None
    cos, sin = table[:, : rotary_dim // 2], table[:, rotary_dim // 2 : rotary_dim]
    # Rows are written over, so that their gaps stay.
    further = picked(table, torch.arange(len(table)))
    further[:, :rotary_dim] = torch.cat([-sin, cos], -1)

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        found = dict(zip(op.outputs, outputs, strict=True))
        for name in ("q", "k"):
            if name in found:
                found[name] = turned_back(found[name], rotary_dim)
        if "k_cache" in found:
            old = dict(zip(op.outputs, base, strict=True))["k_cache"]
            found["k_cache"] = only_stored(turned_back(found["k_cache"], rotary_dim), old, given["slots"])
        return tuple(found.values())

    return Change(given | {"cos_sin": further}, undo)


def turned_back(x: Tensor, rotary_dim: int) -> Tensor:
    """``(a, b)`` was ``(b, -a)``: halves change places, the one that comes second changes its sign."""
    first, second, rest = x.split([rotary_dim // 2, rotary_dim // 2, x.shape[-1] - rotary_dim], -1)
    return torch.cat([second, negated(first), rest], -1)


def negated(x: Tensor) -> Tensor:
    # float8 has no minus.
    return (x.view(torch.uint8) ^ 0x80).view(x.dtype) if x.itemsize == 1 else -x


def only_stored(cache: Tensor, old: Tensor, slots: Tensor) -> Tensor:
    """Entries that no token was stored in were never turned."""
    stored = torch.zeros(cache.shape[0] * cache.shape[1], dtype=torch.bool)
    stored[slots[slots >= 0]] = True
    kept = stored.view(*cache.shape[:2], 1, 1)
    if cache.itemsize > 1:
        return torch.where(kept, cache, old)
    return torch.where(kept, cache.view(torch.uint8), old.view(torch.uint8)).view(cache.dtype)


RELATIONS = (Relation(name="positions shifted", ops=ROTATING, transform=quarter_turn_on),)
