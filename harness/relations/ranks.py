"""Ranks are an accident: what two of them compute apart, and put together, is what one computes.

The first rank holds about half: of columns, heads, widths or experts. Shares are laid side by side. Partial sums are
added in float32, so only calls that return float32 are split that way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.relation import Arguments, Change, Relation
from minimax_m2.harness.relations.labels import same


def side_by_side(dim: int) -> Callable[[list[Outputs]], Outputs]:
    """Every output's shares one after the other."""
    return lambda ranks: tuple(torch.cat(shares, dim) for shares in zip(*ranks, strict=True))


def added(ranks: list[Outputs]) -> Outputs:
    """Every output's partial sums."""
    return tuple(reduce(torch.add, parts) for parts in zip(*ranks, strict=True))


def over(given: Arguments, shares: list[dict[str, Any]], join: Callable[[list[Outputs]], Outputs]) -> Change:
    """A call for each rank, with its share of some arguments."""
    first, *others = [given | share for share in shares]
    return Change(first, same, others=tuple(others), join=join)


def columns(op: Op, case: Case, given: Arguments) -> Change | None:
    """Rows of the weight, which are columns of the result; of a vocabulary those before its padding."""
    width = given["vocab_size"] if op.name == "lm_head" else len(given["weight"])
    if width < 2:
        return None
    shares = [{"weight": given["weight"][part]} for part in (slice(width // 2), slice(width // 2, width))]
    if op.name == "lm_head":
        shares = [share | {"vocab_size": len(share["weight"])} for share in shares]
    return over(given, shares, side_by_side(-1))


def blocks(op: Op, case: Case, given: Arguments) -> Change | None:
    """Rows of an e4m3 weight, whole blocks of them, with their scales."""
    packed: Pack = given["packed"]
    weight, scale, (rows, _) = (packed.arguments[name] for name in ("weight", "scale", "block"))
    half = len(scale) // 2
    if not half:
        return None
    cuts = [(slice(half * rows), slice(half)), (slice(half * rows, None), slice(half, None))]
    packs = [packed.arguments | {"weight": weight[w], "scale": scale[s]} for w, s in cuts]
    return over(given, [{"packed": Pack(packed.function, pack)} for pack in packs], side_by_side(-1))


def attention_heads(op: Op, case: Case, given: Arguments) -> Change | None:
    """Key/value heads, each with the query heads that read it."""
    q, heads = given["q"], given["k_cache"].shape[2]
    group, half = q.shape[1] // heads, heads // 2
    if not half or not len(q):
        return None
    caches = ("k_cache", "v_cache")
    shares = [
        {"q": q[:, group * part.start : group * part.stop].contiguous()}
        | {name: given[name][:, :, part].contiguous() for name in caches}
        for part in (slice(0, half), slice(half, heads))
    ]
    return over(given, shares, side_by_side(1))


def summed_heads(op: Op, case: Case, given: Arguments) -> Change | None:
    """Heads of q and k, whose sums of squares ranks exchange: the norm is over the whole width, not a rank's."""
    queries, keys = given["num_heads"], given["num_kv_heads"]
    if queries < 2 or keys < 2 or not len(given["qkv"]):
        return None
    counted = given.get("counted_kv_heads")
    counted = keys if counted is None else counted
    q, k, v = given["qkv"].unflatten(-1, (-1, given["head_dim"])).split([queries, keys, keys], 1)
    shares = []
    for of_q, of_k in (
        (slice(0, queries // 2), slice(0, keys // 2)),
        (slice(queries // 2, queries), slice(keys // 2, keys)),
    ):
        own = torch.cat([q[:, of_q], k[:, of_k], v[:, of_k]], 1).flatten(1)
        among = min(max(counted - of_k.start, 0), of_k.stop - of_k.start)
        counts = {"num_heads": of_q.stop - of_q.start, "num_kv_heads": of_k.stop - of_k.start}
        shares.append({"qkv": own, **counts, "counted_kv_heads": among})
    return over(given, shares, added)


def is_summable(case: Case, given: Arguments) -> bool:
    """Whether partial sums of experts lose nothing when they are returned."""
    return case["out"] == "float32" and given["weights"] is not None


def expert_widths(op: Op, case: Case, given: Arguments) -> Change | None:
    """Columns of gate and up, and the rows of the second weight that they meet."""
    packed: Pack = given["packed"]
    w13, w2 = packed.arguments["w13"], packed.arguments["w2"]
    width = w2.shape[-1]
    # Ranks that hold a share of the width quantise it by other scales.
    if not is_summable(case, given) or case["quant"] != "none" or width < 2:
        return None
    gate, up = w13.chunk(2, 1)
    packs = [
        packed.arguments | {"w13": torch.cat([gate[:, part], up[:, part]], 1), "w2": w2[..., part].contiguous()}
        for part in (slice(width // 2), slice(width // 2, width))
    ]
    return over(given, [{"packed": Pack(packed.function, pack)} for pack in packs], added)


def whole_experts(op: Op, case: Case, given: Arguments) -> Change | None:
    """Experts: each rank maps those of the other to -1."""
    packed: Pack = given["packed"]
    count = len(packed.arguments["w13"])
    if not is_summable(case, given) or given["expert_map"] is not None or count < 2:
        return None
    half, number = count // 2, torch.arange(count, dtype=torch.int32)
    shares = []
    for part in (slice(0, half), slice(half, count)):
        held = (number >= part.start) & (number < part.stop)
        weights = {n: v[part] for n, v in packed.arguments.items() if isinstance(v, torch.Tensor)}
        pack = Pack(packed.function, packed.arguments | weights)
        shares.append({"packed": pack, "expert_map": torch.where(held, number - part.start, -1).to(torch.int32)})
    return over(given, shares, added)


RELATIONS = (
    Relation(name="columns over ranks", ops=("linear", "lm_head"), transform=columns),
    Relation(name="blocks over ranks", ops=("fp8_linear",), transform=blocks),
    Relation(name="heads over ranks", ops=("attention",), transform=attention_heads),
    Relation(name="sums over ranks", ops=("qk_sum_squares",), transform=summed_heads),
    Relation(name="widths over ranks", ops=("experts",), transform=expert_widths),
    Relation(name="experts over ranks", ops=("experts",), transform=whole_experts),
)
