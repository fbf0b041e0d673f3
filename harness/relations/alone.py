"""Who is computed without the others has the same result: sequences, rows of logits, tokens to be stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op
from minimax_m2.harness.ops.gated_delta_rule import BY_TOKEN
from minimax_m2.harness.relation import Arguments, Change, Relation
from minimax_m2.harness.relations.rows import CACHED, picked


def one_of(case: Case, count: int) -> int:
    """One of so many, another for each case."""
    return int(Bits(case).integers("relation", (1,), 0, count - 1))


def between(base: Tensor, begin: int, own: Tensor, end: int) -> Tensor:
    """Rows ``begin..end`` of ``base`` replaced."""
    return torch.cat([base[:begin], own, base[end:]])


def a_sequence(op: Op, case: Case, given: Arguments) -> Change | None:
    """One sequence of those that have a state and tokens, with the states of all."""
    starts, index = given["query_start"], given["state_index"]
    busy = [b for b in range(len(index)) if index[b] >= 0 and starts[b + 1] > starts[b]]
    if len(index) < 2 or not busy:
        return None
    b = busy[one_of(case, len(busy))]
    begin, end, slot = int(starts[b]), int(starts[b + 1]), int(index[b])
    own = {name: given[name][begin:end] for name in BY_TOKEN if name in given}
    alone = {"state_index": index[b : b + 1], "query_start": starts[b : b + 2] - starts[b]}

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        o, state = outputs
        return between(base[0], begin, o, end), between(base[1], slot, state[slot : slot + 1], slot + 1)

    # The state is the only thing that is written, so each call gets one of its own.
    return Change(given | own | alone | {"state": given["state"].clone()}, undo)


def a_prompt(op: Op, case: Case, given: Arguments) -> Change | None:
    """One sequence's queries with its own pages, the caches as they are."""
    starts = given["query_start"]
    busy = [b for b in range(len(starts) - 1) if starts[b + 1] > starts[b]]
    if len(starts) < 3 or not busy:
        return None
    b = busy[one_of(case, len(busy))]
    begin, end = int(starts[b]), int(starts[b + 1])
    own = {name: given[name][b : b + 1] for name in ("block_table", "seq_lens")}
    alone = {"q": given["q"][begin:end], "query_start": starts[b : b + 2] - starts[b]}
    return Change(given | own | alone, lambda outputs, base: (between(base[0], begin, outputs[0], end),))


def a_row_of_logits(op: Op, case: Case, given: Arguments) -> Change | None:
    """One row of those whose logits are asked for."""
    rows = given["rows"]
    count = len(given["x"] if rows is None else rows)
    if count < 2:
        return None
    n = one_of(case, count)
    own: dict[str, Any] = {"x": picked(given["x"], torch.tensor([n]))} if rows is None else {"rows": rows[n : n + 1]}
    return Change(given | own, lambda outputs, base: (between(base[0], n, outputs[0], n + 1),))


def a_stored_token(op: Op, case: Case, given: Arguments) -> Change | None:
    """One token to be stored, in caches as they were before."""
    names, slots = CACHED[op.name], given["slots"]
    count = len(slots)
    if count < 2:
        return None
    t = one_of(case, count)
    own = {name: picked(given.get(name), torch.tensor([t])) for name in names if name in given}
    returned = len(op.outputs) - len(op.mutates)

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        rows = tuple(between(b, t, o, t + 1) for o, b in zip(outputs[:returned], base, strict=False))
        caches = (in_slot(o, b) for o, b in zip(outputs[returned:], base[returned:], strict=True))
        return (*rows, *caches)

    def in_slot(cache: Tensor, base: Tensor) -> Tensor:
        """The cache of all tokens, with what this one stored."""
        page, place = divmod(int(slots[t]), base.shape[1])
        found = base.clone()
        if slots[t] >= 0:
            found[page, place] = cache[page, place]
        return found

    return Change(given | own | {name: given[name].clone() for name in op.mutates}, undo)


RELATIONS = (
    Relation(name="a sequence alone", ops=("gated_delta_rule", "gdn_update"), transform=a_sequence),
    Relation(name="a prompt alone", ops=("attention",), transform=a_prompt),
    Relation(name="a row of logits alone", ops=("lm_head",), transform=a_row_of_logits),
    Relation(name="a stored token alone", ops=tuple(CACHED), transform=a_stored_token),
)
