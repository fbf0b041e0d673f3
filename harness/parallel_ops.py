"""Ops split over simulated ranks, as providers: the ranks' shares go in, what they would sum or gather comes out.

A split needs no communicator: ops that need another rank's numbers are cut into halves around the collective, and
here the sum stands between them. Whoever judges a kernel judges a split: same cases, same budgets.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Verdict
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.experts import PackedExperts, pack_experts
from minimax_m2.reference.routing import unpack_routing
from minimax_m2.reference.sharding import Cut, Heads, Span, cut, head_cut, heads, joined, span, span_cut
from minimax_m2.reference.sharding_blocks import cut_quantized, reblocked
from minimax_m2.reference.weights import BlockQuantized, Weight

Deal = Callable[..., Heads]
"""Who holds which heads, as ``sharding.heads``."""


class Ranks(NamedTuple):
    """Ranks in the order of their sums, who of them holds which heads, and whose kernels they run.

    voice  what a real rank says to the others; None where all are simulated here
    """

    order: list[int]
    deal: Deal
    of: Callable[[str], Callable[..., Any]]
    voice: Communicator | None = None

    @property
    def here(self) -> list[int]:
        """The ranks whose parts are computed in this process."""
        return self.order if self.voice is None else [self.voice.rank]

    def sum(self, parts: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
        """Add up the parts of all ranks, given those of the ranks here."""
        local = functools.reduce(operator.add, parts)
        return (local if self.voice is None else self.voice.all_reduce(local, label="parts")).to(dtype)

    def each(self, parts: Iterable[Tensor]) -> list[Tensor]:
        """The parts of all ranks in their order, of one shape, given those of the ranks here."""
        if self.voice is None:
            return list(parts)
        (part,) = parts
        return list(self.voice.all_gather(part[None], label="parts"))


def split_cases(op: str, count: int, *, start: int = 0) -> list[Case]:
    """Sampled cases of an op that ranks can share."""
    return [case for case in sampled(find_op(op), count, start=start) if is_shared(case)]


def is_shared(case: Case) -> bool:
    """Whether query heads, if any, stand in whole groups over key/value heads, and no row is quantised as a whole.

    Ranks that hold a share of the width give int8 codes a scale of their own, so they compute other numbers than one.
    """
    return ("Hq" not in case or case.number("Hq") % case.number("Hk") == 0) and case.get("quant") != "int8"


def try_split(
    op: str, *, tp: int, cases: Iterable[Case], deal: Deal = heads, ep: int = 1, turn: int = 0
) -> list[Verdict]:
    """Judge plain torch's ``op`` over ``tp`` ranks on ``cases`` until one fails; the rest as in ``split_over``."""
    split = split_over(plain(), tp=tp, ep=ep, deal=deal, turn=turn)
    return try_on(op, _found(split, op), cases=cases, **_PACKS.get(op, {}))


def split_over(
    provider: Provider, *, tp: int, dp: int = 1, ep: int = 1, deal: Deal = heads, turn: int = 0,
    voice: Communicator | None = None,
) -> Provider:  # fmt: skip
    """A provider of the same kernels, each call of which ``tp * dp`` simulated ranks share.

    dp     attention groups; experts meet the rows of all, the last of which brings none
    ep     groups of experts, of all ranks
    turn   by how many places the ranks are turned in the order of the sums
    voice  this rank's, where ``tp * dp`` real ranks make the same calls and each computes its share

    Raises ValueError for another number of real ranks than the split has, and for real ranks that are turned.
    """
    if voice is not None and (voice.size != tp * dp or turn):
        raise ValueError(f"{voice.size} real ranks, turned by {turn}, cannot share a call over tp={tp}, dp={dp}")
    world = tp * dp
    of = functools.partial(_found, provider)

    def functions(name: str) -> Callable[..., Any] | None:
        packs = next((packs for packs in _PACKS.values() if name in packs), {})
        if name not in _SPLITS or not provider.offers(name):
            # Weights are laid out by each rank, for its share.
            return packs.get(name)
        size, groups = (world, {"dp": dp, "ep": ep}) if name == "experts" else (tp, {})
        ranks = Ranks([(rank + turn) % size for rank in range(size)], deal, of, voice)

        def split(*given: Any, **keywords: Any) -> Any:
            return _SPLITS[name](ranks, *given, **groups, **keywords)

        return split

    return replace(provider, functions=functions)


def _found(provider: Provider, name: str) -> Callable[..., Any]:
    function = provider.functions(name)
    if function is None:
        raise ValueError(f"{provider.name} offers no {name}; its ranks cannot share it")
    return function


def _embedding(on: Ranks, ids: Tensor, weight: Tensor, *, vocab_start: int = 0) -> Tensor:
    shards = [span(len(weight), parts=len(on.order), index=rank, multiple=4) for rank in on.here]
    rows = [
        on.of("embedding")(ids, cut(weight, span_cut(own), dim=0), vocab_start=vocab_start + own.start)
        for own in shards
    ]
    return on.sum(rows, weight.dtype)


def _lm_head(on: Ranks, x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    own = [span_cut(span(vocab_size, parts=len(on.order), index=rank, multiple=4)) for rank in sorted(on.here)]
    logits = [on.of("lm_head")(x, cut(weight, c, dim=0), rows=rows, vocab_size=c.size) for c in own]
    return torch.cat(on.each(logits), -1)[:, :vocab_size].clone()


def _linear(on: Ranks, x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Cut along the channels that are summed, as o_proj is."""
    own = [span_cut(span(x.shape[1], parts=len(on.order), index=rank)) for rank in on.here]
    shares = [(cut(x, c, dim=1), cut(weight, c, dim=1)) for c in own]
    return on.sum((on.of("linear")(a, b, out_dtype=torch.float32) for a, b in shares), out_dtype or x.dtype)


def _fp8_linear(
    on: Ranks, x: Tensor, packed: BlockQuantized, *,
    x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Cut along the outputs, as the projection of q, k and v is."""
    rows = packed.weight.shape[0]
    parts = []
    for rank in sorted(on.here):
        own = span(rows, parts=len(on.order), index=rank, multiple=2)
        side = math.gcd(packed.block[0], own.size)
        q = cut_quantized(packed, span_cut(own), dim=-2, block=side)
        pack = on.of("pack_fp8_linear")(q.weight, q.scale, block=q.block)
        parts.append(on.of("fp8_linear")(x, pack, x_scale=x_scale, out_dtype=out_dtype))
    return torch.cat(on.each(parts), -1)[:, :rows].clone()


def qkv_share(qkv: Tensor, own: Heads, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    key, value = num_heads * head_dim, (num_heads + num_kv_heads) * head_dim
    cuts = (
        head_cut(which, head_dim=head_dim, offset=o) for which, o in ((own.query, 0), (own.kv, key), (own.kv, value))
    )
    return cut(qkv, joined(*cuts), dim=1)


def _qk_sum_squares(
    on: Ranks, qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int,
    counted_kv_heads: int | None = None,
) -> Tensor:  # fmt: skip
    counted = num_kv_heads if counted_kv_heads is None else counted_kv_heads
    parts = []
    for rank in on.here:
        own = on.deal(num_heads, num_kv_heads, tp=len(on.order), rank=rank)
        sums = functools.partial(on.of("qk_sum_squares"), num_heads=len(own.query), num_kv_heads=len(own.kv))
        local = sum(head < counted for head in own.kv[: own.counted_kv_heads])
        share = qkv_share(qkv, own, num_heads, num_kv_heads, head_dim)
        parts.append(sums(share, head_dim=head_dim, counted_kv_heads=local))
    return on.sum(parts, torch.float32)


def _qk_norm_rope(
    on: Ranks, qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor,
    cos_sin: Tensor, positions: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, **sizes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    counts = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    if stats is None:
        stats = _qk_sum_squares(on, qkv, **counts)
    shares: list[Any] = []
    for rank in on.here:
        own = on.deal(num_heads, num_kv_heads, tp=len(on.order), rank=rank)
        local = {"num_heads": len(own.query), "num_kv_heads": len(own.kv), "head_dim": head_dim}
        weights = (
            cut(weight, head_cut(which, head_dim=head_dim), dim=0)
            for weight, which in ((q_weight, own.query), (k_weight, own.kv))
        )
        share = qkv_share(qkv, own, num_heads, num_kv_heads, head_dim)
        shares.append(on.of("qk_norm_rope")(share, stats, *weights, cos_sin, positions, **local, **sizes))
    dealt = [on.deal(num_heads, num_kv_heads, tp=len(on.order), rank=rank) for rank in on.order]
    q, k, v = (on.each(parts) for parts in zip(*shares, strict=True))
    query, kv = [own.query for own in dealt], [own.kv for own in dealt]
    return placed_heads(q, query, num_heads), placed_heads(k, kv, num_kv_heads), placed_heads(v, kv, num_kv_heads)


def _attention(on: Ranks, q: Tensor, k_cache: Tensor, v_cache: Tensor, *given: Any, **keywords: Any) -> Tensor:
    dealt = {rank: on.deal(q.shape[1], k_cache.shape[2], tp=len(on.order), rank=rank) for rank in on.order}
    parts = []
    for rank in on.here:
        query, kv = (head_cut(which, head_dim=1) for which in (dealt[rank].query, dealt[rank].kv))
        caches = (cut(cache, kv, dim=2) for cache in (k_cache, v_cache))
        parts.append(on.of("attention")(cut(q, query, dim=1), *caches, *given, **keywords))
    return placed_heads(on.each(parts), [own.query for own in dealt.values()], q.shape[1])


def placed_heads(parts: list[Tensor], which: list[tuple[int, ...]], count: int) -> Tensor:
    """The ranks' heads ``[T, Hq, D]`` at their places; NaN where nobody has the head."""
    whole = parts[0].new_full((len(parts[0]), count, parts[0].shape[2]), torch.nan)
    for part, own in zip(parts, which, strict=True):
        true = [place for place, head in enumerate(own) if head >= 0]
        whole[:, [own[place] for place in true]] = part[:, true]
    return whole


def _experts(
    on: Ranks, x: Tensor, packed: PackedExperts, weights: Tensor | None, ids: Tensor, *,
    expert_map: Tensor | None = None, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
    dp: int = 1, ep: int = 1,
) -> Tensor:  # fmt: skip
    """Cut the width over groups of ranks, experts over ``ep`` groups, and rows over ``dp`` that gather them."""
    if weights is None:
        weights, ids = unpack_routing(ids)
    rows, dtype = _gathered_rows(x.shape[0], dp), out_dtype or (torch.float32 if x_scale is not None else x.dtype)
    x, weights, ids = (cut(value, rows, dim=0) for value in (x, weights, ids))
    x_scale = None if x_scale is None else cut(x_scale, rows, dim=0)
    is_row = (rows.sources >= 0).to(ids.device)
    ids = ids.masked_fill(~is_row[:, None], -1)
    local = ids.long() if expert_map is None else expert_map[ids.long().clamp(min=0)].long().masked_fill(ids < 0, -1)
    held, inner = packed.w2.shape[0], packed.w2.shape[2]
    sharing = len(on.order) // ep
    parts = []
    for rank in on.here:
        experts = span(held, parts=ep, index=rank // sharing)
        width = span(inner, parts=sharing, index=rank % sharing, multiple=8)
        own, scales = _expert_share(on, packed, experts, width, inner, x_scale)
        is_own = (local >= experts.start) & (local < experts.stop)
        here = torch.where(is_own, local - experts.start, -1).to(torch.int32)
        parts.append(on.of("experts")(x, own, weights, here, x_scale=scales, out_dtype=torch.float32))
    return on.sum(parts, dtype)[is_row]


def _gathered_rows(count: int, dp: int) -> Cut:
    """Rows as all ranks see them: those of each attention group padded to the longest; the last has padding only."""
    if dp == 1:
        return Cut(((0, count),))
    busy = [span(count, parts=dp - 1, index=group) for group in range(dp - 1)]
    return joined(*(span_cut(own) for own in busy), Cut(((-1, busy[0].size),)))


def _expert_share(
    on: Ranks, packed: PackedExperts, experts: Span, width: Span, inner: int, x_scale: Tensor | None
) -> tuple[PackedExperts, Tensor | None]:
    if packed.w13.dtype == torch.int8:
        raise ValueError("w13 is int8: each rank would quantise rows of its width by a scale of its own")
    gate_up = joined(span_cut(width), span_cut(width, offset=inner))
    side = int(packed.block[0])
    # Up begins where gate ends, which need not be the end of a block.
    block = math.gcd(side, width.size, inner)
    w13 = _weight_share(packed.w13, packed.w13_scale, span_cut(experts), gate_up, -2, (side, block))
    w2 = _weight_share(packed.w2, packed.w2_scale, span_cut(experts), span_cut(width), -1, (side, block))
    if isinstance(w13, Tensor) or isinstance(w2, Tensor):
        return on.of("pack_experts")(w13, w2, block=(side, side)), x_scale
    if x_scale is not None:
        # Finer blocks are finer groups of activations, too: their scales repeat as the weights' do.
        groups = -(-packed.w2.shape[1] // block)
        x_scale = x_scale.repeat_interleave(side // block, -1)[:, :groups].contiguous()
    share = on.of("pack_experts")(w13.weight, w2.weight, w13_scale=w13.scale, w2_scale=w2.scale, block=w13.block)
    return share, x_scale


def _weight_share(
    weight: Tensor, scale: Tensor, experts: Cut, which: Cut, dim: int, sides: tuple[int, int]
) -> Weight:  # fmt: skip
    weight = cut(weight, experts, dim=0)
    if not scale.numel():
        return cut(weight, which, dim=weight.ndim + dim)
    q = BlockQuantized(weight, cut(scale, experts, dim=0), (sides[0], sides[0]))
    return reblocked(cut_quantized(q, which, dim=dim, block=sides[1]), (sides[1], sides[1]))


def _block_quantized(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> BlockQuantized:
    return BlockQuantized(weight, scale, block)


_SPLITS: dict[str, Callable[..., Any]] = {
    "embedding": _embedding,
    "lm_head": _lm_head,
    "linear": _linear,
    "fp8_linear": _fp8_linear,
    "qk_sum_squares": _qk_sum_squares,
    "qk_norm_rope": _qk_norm_rope,
    "attention": _attention,
    "experts": _experts,
}
SPLIT_OPS = tuple(_SPLITS)
"""Ops that ranks share."""

_PACKS: dict[str, dict[str, Any]] = {
    "fp8_linear": {"pack_fp8_linear": _block_quantized},
    "experts": {"pack_experts": pack_experts},
}
