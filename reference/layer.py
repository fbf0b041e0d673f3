"""One decoder layer, made of the steps that a table of ops offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.exchange import Exchange
from minimax_m2.reference.paging import Batch
from minimax_m2.reference.table import OpTable
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, Weight

Tap = Callable[[str, int, Tensor], None]
"""Called as ``tap(step, layer, output)``; it may keep the tensor but must not change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What all layers of one forward pass share."""

    config: MiniMaxM2Config
    batch: Batch
    cos_sin: Tensor  # [P, R]
    exchange: Exchange
    tokens: Sequence[int] = ()  # of each attention group, as the exchange's experts ask
    counted_kv_heads: int | None = None
    tap: Tap | None = None

    def note(self, step: str, layer: int, output: Tensor) -> None:
        """Show a step's output to the tap, if there is one."""
        if self.tap is not None:
            self.tap(step, layer, output)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """A layer's weights, packed for the ops of its table.

    Head counts come from the weights, so a tensor-parallel rank's share needs no other configuration.
    """

    index: int
    ops: OpTable
    weights: LayerWeights
    qkv_proj: Callable[[Tensor], Tensor]
    o_proj: Callable[[Tensor], Tensor]
    o_proj_reduces: bool
    packed_experts: Any

    @classmethod
    def pack(cls, weights: LayerWeights, *, index: int, ops: OpTable) -> DecoderLayer:
        """Pack projections and experts with the table's own packing.

        A table's ``linear`` or ``fp8_linear`` with the attribute ``reduces`` sums o_proj over the ranks itself. So may
        ``add_rms_norm``, what it adds, and ``qk_norm_rope_cache``, the statistics: see ``sums_over``.
        """
        o_proj = ops.fp8_linear if isinstance(weights.o_proj, BlockQuantized) else ops.linear
        return cls(
            index=index,
            ops=ops,
            weights=weights,
            qkv_proj=_projection(weights.qkv_proj, ops),
            o_proj=_projection(weights.o_proj, ops),
            o_proj_reduces=getattr(o_proj, "reduces", False),
            packed_experts=_pack_experts(weights.w13, weights.w2, ops),
        )

    def __call__(
        self, hidden: Tensor, residual: Tensor | None, k_cache: Tensor, v_cache: Tensor, shared: Pass
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer; ``k_cache!`` and ``v_cache!`` take the new keys and values.

        hidden   [T, H], what the previous layer has still to add to the stream; the embedding for the first
        residual [T, H], the stream before that; None for the first layer
        returns  hidden and residual for the next layer, and the stream at this layer's entry, each [T, H]

        Taps, in order: entry, input_norm, qkv, query, attention, o_proj, middle (the stream between the halves),
        post_attention_norm, routing_weights, routing_ids, experts. Where the norm sums over the ranks, o_proj and
        experts are never there as a whole, and are not tapped. Without tokens, T = 0, no op is called and nothing
        tapped, but for experts that other ranks send tokens to; every collective is.
        """
        if hidden.shape[0] == 0:
            return self._without_tokens(hidden, shared), hidden, hidden
        ops, weights, eps = self.ops, self.weights, shared.config.rms_norm_eps
        if residual is None:
            x, entry = ops.rms_norm(hidden, weights.input_layernorm, eps=eps), hidden
        else:
            x, entry = added(ops, hidden, residual, weights.input_layernorm, eps, "experts", self.index - 1)
        shared.note("entry", self.index, entry)
        shared.note("input_norm", self.index, x)
        y = self._attention(x, k_cache, v_cache, shared)
        x, middle = added(ops, y, entry, weights.post_attention_layernorm, eps, "o_proj", self.index)
        shared.note("middle", self.index, middle)
        shared.note("post_attention_norm", self.index, x)
        return self._experts(x, shared), middle, entry

    def _attention(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, shared: Pass) -> Tensor:
        ops, weights, config, batch = self.ops, self.weights, shared.config, shared.batch
        heads = {
            "num_heads": weights.q_norm.shape[0] // config.head_dim,
            "num_kv_heads": weights.k_norm.shape[0] // config.head_dim,
            "head_dim": config.head_dim,
        }
        qkv = self.qkv_proj(x)  # [T, (Hq + 2 Hk) D]
        shared.note("qkv", self.index, qkv)
        exchange = shared.exchange
        stats: Tensor | None = None
        more: dict[str, Any] = {}
        if sums_over(ops.qk_norm_rope_cache):
            label = f"q and k statistics of layer {self.index}"
            more = {"counted_kv_heads": shared.counted_kv_heads, "label": label}
        elif not exchange.is_alone:
            local = ops.qk_sum_squares(qkv, **heads, counted_kv_heads=shared.counted_kv_heads)
            stats = exchange.sum_statistics(local, layer=self.index)
        query = ops.qk_norm_rope_cache(
            qkv,
            stats,
            weights.q_norm,
            weights.k_norm,
            shared.cos_sin,
            batch.positions,
            k_cache,
            v_cache,
            batch.slots,
            **heads,
            rotary_dim=config.rotary_dim,
            q_width=config.q_width,
            k_width=config.kv_width,
            eps=config.rms_norm_eps,
            **more,
        )
        shared.note("query", self.index, query)
        y = ops.attention(
            query,
            k_cache,
            v_cache,
            batch.block_table,
            batch.seq_lens,
            batch.query_start,
            scale=config.head_dim**-0.5,
            max_query_len=batch.max_query_len,
            max_seq_len=batch.max_seq_len,
        )
        shared.note("attention", self.index, y)
        y = self.o_proj(y.flatten(1))
        y = y if self.o_proj_reduces else exchange.sum_heads(y, layer=self.index)
        if not exchange.norm_sums:
            shared.note("o_proj", self.index, y)
        return y

    def _experts(self, x: Tensor, shared: Pass) -> Tensor:
        def route(rows: Tensor) -> tuple[Tensor, Tensor]:
            weights, ids = self.ops.router(
                rows, self.weights.gate, self.weights.e_score_correction_bias, top_k=shared.config.num_experts_per_tok
            )
            shared.note("routing_weights", self.index, weights)
            shared.note("routing_ids", self.index, ids)
            return weights, ids

        def compute(rows: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
            return self.ops.experts(rows, self.packed_experts, weights, ids)

        tokens = shared.tokens or [x.shape[0]]
        y = shared.exchange.experts(x, route, compute, tokens=tokens, layer=self.index)
        if len(x) and not shared.exchange.norm_sums:
            shared.note("experts", self.index, y)
        return y

    def _without_tokens(self, x: Tensor, shared: Pass) -> Tensor:
        """Say what the other ranks wait for, and compute only what they send; x ``[0, H]``."""
        if self.o_proj_reduces:
            raise ValueError(
                f"layer {self.index}: o_proj reduces over the ranks itself, so a rank without tokens, which calls no "
                "op, would leave the others waiting; leave the sum to the layer"
            )
        # Ops that sum rows themselves have none to sum here, nor on the other ranks of this attention group.
        if not sums_over(self.ops.qk_norm_rope_cache):
            stats = x.new_empty(0, 2, dtype=torch.promote_types(x.dtype, torch.float32))
            shared.exchange.sum_statistics(stats, layer=self.index)
        shared.exchange.sum_heads(x, layer=self.index)
        return self._experts(x, shared)


def sums_over(op: Callable[..., Any]) -> int:
    """How many ranks an op adds rows up over by itself, its attribute ``sums_over``; 0 for one that does not.

    Such an ``add_rms_norm`` is given a rank's part of x, such a ``qk_norm_rope_cache`` no statistics but
    ``counted_kv_heads``; both are told by ``label`` what they sum, as a collective is.
    """
    return int(getattr(op, "sums_over", 0))


def added(
    ops: OpTable, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, step: str, layer: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Call ``add_rms_norm``; where it sums over the ranks, with the step and its layer as label."""
    # Built only there: a compiled layer's index is no constant.
    more = {"label": f"{step} of layer {layer}"} if sums_over(ops.add_rms_norm) else {}
    y, stream = ops.add_rms_norm(x, residual, weight, eps=eps, **more)
    return y, stream


def _projection(weight: Weight, ops: OpTable) -> Callable[[Tensor], Tensor]:
    if isinstance(weight, BlockQuantized):
        packed = ops.pack_fp8_linear(weight.weight, weight.scale, block=weight.block)
        return lambda x: ops.fp8_linear(x, packed)
    return lambda x: ops.linear(x, weight)


def _pack_experts(w13: Weight, w2: Weight, ops: OpTable) -> Any:
    if isinstance(w13, BlockQuantized) and isinstance(w2, BlockQuantized):
        if w13.block != w2.block:
            raise ValueError(f"w13 has blocks of {w13.block}, w2 of {w2.block}; cut both to the same blocks")
        return ops.pack_experts(w13.weight, w2.weight, w13_scale=w13.scale, w2_scale=w2.scale, block=w13.block)
    if isinstance(w13, BlockQuantized) or isinstance(w2, BlockQuantized):
        raise ValueError("one of w13 and w2 is quantised and the other not; load with keep_quantized=False")
    return ops.pack_experts(w13, w2)
