"""Labels are names: which number an expert, a page, a position or a head group goes by changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.relation import Arguments, Change, Exactness, Relation
from minimax_m2.harness.relations.rows import picked

# Index arguments whose dtype is the caller's choice.
INDICES: dict[str, tuple[str, ...]] = {
    "attention": ("block_table", "seq_lens", "query_start"),
    "embedding": ("ids",),
    "experts": ("ids",),
    "lm_head": ("rows",),
    "moe_align": ("ids",),
    "pack_routing": ("ids",),
    "qk_norm_rope": ("positions",),
    "qk_norm_rope_cache": ("positions",),
    "rope": ("positions",),
}
ROTATING = ("qk_norm_rope", "qk_norm_rope_cache", "rope")
OTHER = {torch.int32: torch.int64, torch.int64: torch.int32}


def same(outputs: Outputs, base: Outputs) -> Outputs:
    """The changed call's outputs are comparable as they are."""
    return outputs


def other_ids(op: Op, case: Case, given: Arguments) -> Change | None:
    """Every index in the other of int32 and int64."""
    if op.name == "experts" and given["weights"] is None:
        return None
    names = [name for name in INDICES[op.name] if isinstance(given.get(name), Tensor)]
    return Change(given | {name: given[name].to(OTHER[given[name].dtype]) for name in names}, same) if names else None


def experts_relabelled(op: Op, case: Case, given: Arguments) -> Change | None:
    """Experts in another order: their weights, and the ids that name them."""
    packed = given["packed"]
    count = len(packed.arguments["w13"])
    if given["expert_map"] is not None or given["weights"] is None or count < 2:
        return None
    order = Bits(case).shuffled("relation", count)
    names = ("w13", "w2", "w13_scale", "w2_scale")
    weights = {n: packed.arguments[n][order] for n in names if packed.arguments.get(n) is not None}
    ids = given["ids"]
    renamed = order.argsort()[ids.long().clamp(min=0)].masked_fill(ids < 0, -1).to(ids.dtype)
    return Change(given | {"packed": Pack(packed.function, packed.arguments | weights), "ids": renamed}, same)


def scores_relabelled(op: Op, case: Case, given: Arguments) -> Change | None:
    """Experts in another order: their logits, or rows of the gate, and their biases."""
    scored = "logits" if op.name == "routing" else "weight"
    count = given[scored].shape[1 if op.name == "routing" else 0]
    if count < 2:
        return None
    order = Bits(case).shuffled("relation", count)
    moved = picked(given[scored].mT, order).mT if op.name == "routing" else picked(given[scored], order)
    bias = None if given["bias"] is None else given["bias"][order]
    kept = moved if op.name != "routing" else moved.contiguous()

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        weights, ids = outputs
        named = order[ids.long().clamp(min=0)].masked_fill(ids < 0, -1)
        return weights, named.to(ids.dtype)

    return Change(given | {scored: kept, "bias": bias}, undo)


def positions_relabelled(op: Op, case: Case, given: Arguments) -> Change | None:
    """The rows of the table in another order, and positions that name them."""
    table, positions = given["cos_sin"], given["positions"]
    if not len(positions):
        return None
    order = Bits(case).shuffled("relation", len(table))
    renamed = order.argsort()[positions.long()].to(positions.dtype)
    return Change(given | {"cos_sin": picked(table, order), "positions": renamed}, same)


def pages_relabelled(op: Op, case: Case, given: Arguments) -> Change | None:
    """Physical pages in another order, and a block table that names them."""
    pages, table = len(given["k_cache"]), given["block_table"]
    if not table.numel():
        return None
    order = Bits(case).shuffled("relation", pages)
    back = order.argsort()
    # What lies behind a sequence's pages is no page and keeps its number.
    renamed = torch.where((table >= 0) & (table < pages), back[table.long().clamp(0, pages - 1)], table.long())
    caches = {name: picked(given[name], order) for name in ("k_cache", "v_cache")}
    return Change(given | caches | {"block_table": renamed.to(table.dtype)}, same)


def pages_halved(op: Op, case: Case, given: Arguments) -> Change | None:
    """Pages of half the size, twice as many."""
    page, table = given["k_cache"].shape[1], given["block_table"].long()
    if page % 2 or not table.numel():
        return None
    halves: dict[str, Any] = {
        name: given[name].contiguous().reshape(-1, page // 2, *given[name].shape[2:]) for name in ("k_cache", "v_cache")
    }
    pages = len(given["k_cache"])
    known = (table >= 0) & (table < pages)
    doubled = torch.stack([torch.where(known, 2 * table + i, -1) for i in (0, 1)], -1).flatten(1)
    return Change(given | halves | {"block_table": doubled.to(given["block_table"].dtype)}, same)


def head_groups_permuted(op: Op, case: Case, given: Arguments) -> Change | None:
    """Key/value heads in another order, each with the query heads that read it."""
    Hk = given["k_cache"].shape[2]
    if Hk < 2 or not len(given["q"]):
        return None
    order = torch.arange(Hk).roll(1)
    heads = torch.arange(given["q"].shape[1]).view(Hk, -1)[order].flatten()
    caches = {name: given[name].transpose(0, 2)[order].transpose(0, 2).contiguous() for name in ("k_cache", "v_cache")}
    back = heads.argsort()
    return Change(given | caches | {"q": given["q"][:, heads]}, lambda outputs, base: (outputs[0][:, back],))


def one_by_one(op: Op, case: Case, given: Arguments) -> Change | None:
    """Every query a sequence of its own, with the keys that it may see: decoding what a prefill computes at once."""
    return in_parts(given, lambda count: [1] * count)


def in_halves(op: Op, case: Case, given: Arguments) -> Change | None:
    """Every prompt in two parts, the second with all keys of the first: a chunked prefill."""
    return in_parts(given, lambda count: [count // 2, count - count // 2] if count > 1 else [count])


def in_parts(given: Arguments, parts: Callable[[int], list[int]]) -> Change | None:
    """Sequences cut into ``parts`` of so many queries, each one with the keys that its last query may see."""
    starts, lengths = given["query_start"].tolist(), given["seq_lens"].tolist()
    rows, seen, sizes = list[int](), list[int](), list[int]()
    for b, length in enumerate(lengths):
        left = starts[b + 1] - starts[b]
        for size in parts(left):
            left -= size
            rows, seen, sizes = [*rows, b], [*seen, max(0, length - left)], [*sizes, size]
    if len(rows) in (0, len(lengths)):
        return None
    kind = given["seq_lens"].dtype
    cut = {
        "block_table": given["block_table"][torch.tensor(rows)],
        "seq_lens": torch.tensor(seen, dtype=kind),
        "query_start": torch.tensor([starts[0], *(starts[0] + s for s in accumulate(sizes))], dtype=kind),
        "max_query_len": max(sizes),
    }
    return Change(given | cut, same)


RELATIONS = (
    Relation(name="the other index dtype", ops=tuple(INDICES), transform=other_ids, exactness=Exactness.BITS),
    Relation(name="experts relabelled", ops=("experts",), transform=experts_relabelled),
    Relation(name="scores relabelled", ops=("routing", "router"), transform=scores_relabelled),
    Relation(name="positions relabelled", ops=ROTATING, transform=positions_relabelled, exactness=Exactness.BITS),
    Relation(name="pages relabelled", ops=("attention",), transform=pages_relabelled, exactness=Exactness.BITS),
    Relation(name="pages halved", ops=("attention",), transform=pages_halved),
    Relation(name="head groups permuted", ops=("attention",), transform=head_groups_permuted),
    Relation(name="a query at a time", ops=("attention",), transform=one_by_one),
    Relation(name="prompts in two parts", ops=("attention",), transform=in_halves),
)
