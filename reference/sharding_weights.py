"""A rank's share of a whole model's weights, as its layout cuts them."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Cut, Layout, cut, head_cut, joined, span_cut
from minimax_m2.reference.sharding_blocks import block_of, cut_quantized, reblocked
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, ModelWeights, Weight


def shard(weights: ModelWeights, config: MiniMaxM2Config, layout: Layout) -> ModelWeights:
    """Return the share of ``layout.rank``; the cut tensors are copies, the norms and the router are the whole's."""
    vocabulary = span_cut(layout.vocabulary(config))
    embed_tokens = cut(weights.embed_tokens, vocabulary, dim=0)
    tied = weights.lm_head is weights.embed_tokens
    return ModelWeights(
        embed_tokens=embed_tokens,
        layers=[shard_layer(layer, config, layout) for layer in weights.layers],
        norm=weights.norm,
        lm_head=embed_tokens if tied else cut(weights.lm_head, vocabulary, dim=0),
    )


def shard_layer(layer: LayerWeights, config: MiniMaxM2Config, layout: Layout) -> LayerWeights:
    """Return a rank's heads of the attention, and its columns of its experts.

    Blocks of FP8 scales become as fine as the head's width and the width of the experts' shares ask for, on all ranks
    alike.
    """
    dim, own, width, inner = config.head_dim, layout.heads(config), layout.width(config), config.intermediate_size
    offsets = ((own.query, 0), (own.kv, config.q_width), (own.kv, config.q_width + config.kv_width))
    qkv = joined(*(head_cut(which, head_dim=dim, offset=offset) for which, offset in offsets))
    query = head_cut(own.query, head_dim=dim)
    gate_up = joined(span_cut(width), span_cut(width, offset=inner))
    experts = span_cut(layout.experts(config))
    heads_block, width_block = block_of(dim), block_of(width.size)
    w13 = _cut(_experts(layer.w13, experts), gate_up, dim=-2, block=width_block)
    w2 = _cut(_experts(layer.w2, experts), span_cut(width), dim=-1, block=width_block)
    return dataclasses.replace(
        layer,
        qkv_proj=_cut(layer.qkv_proj, qkv, dim=-2, block=heads_block),
        q_norm=cut(layer.q_norm, query, dim=0),
        k_norm=cut(layer.k_norm, head_cut(own.kv, head_dim=dim), dim=0),
        o_proj=_cut(layer.o_proj, query, dim=-1, block=heads_block),
        w13=_square(w13, width_block),
        w2=_square(w2, width_block),
    )


def refuse_other_share(weights: ModelWeights, config: MiniMaxM2Config, layout: Layout) -> None:
    """Raise ValueError, naming the tensor, if ``weights`` are not of the shapes of ``layout.rank``'s share."""
    own, experts, width = layout.heads(config), layout.experts(config).size, layout.width(config).size
    rows, hidden, dim = layout.vocabulary(config).size, config.hidden_size, config.head_dim
    expected: dict[str, tuple[Weight, tuple[int, ...]]] = {
        "embed_tokens": (weights.embed_tokens, (rows, hidden)),
        "lm_head": (weights.lm_head, (rows, hidden)),
    }
    q, kv = len(own.query) * dim, len(own.kv) * dim
    shapes: dict[str, tuple[int, ...]] = {
        "qkv_proj": (q + 2 * kv, hidden),
        "q_norm": (q,),
        "k_norm": (kv,),
        "o_proj": (hidden, q),
        "w13": (experts, 2 * width, hidden),
        "w2": (experts, hidden, width),
    }
    for index, layer in enumerate(weights.layers):
        expected |= {f"layer {index}: {name}": (getattr(layer, name), shape) for name, shape in shapes.items()}
    for name, (weight, shape) in expected.items():
        found = weight.weight.shape if isinstance(weight, BlockQuantized) else weight.shape
        if tuple(found) != shape:
            raise ValueError(
                f"{name} has shape {list(found)}; rank {layout.rank} of tp={layout.tp}, dp={layout.dp}, "
                f"ep={layout.ep}, widths={layout.widths!r} holds {list(shape)}; cut weights with shard()"
            )


def _cut(weight: Weight, which: Cut, *, dim: int, block: int) -> Weight:
    if isinstance(weight, Tensor):
        return cut(weight, which, dim=weight.ndim + dim)
    return cut_quantized(weight, which, dim=dim, block=block)


def _experts(weight: Weight, which: Cut) -> Weight:
    if isinstance(weight, Tensor):
        return cut(weight, which, dim=0)
    return BlockQuantized(cut(weight.weight, which, dim=0), cut(weight.scale, which, dim=0), weight.block)


def _square(weight: Weight, block: int) -> Weight:
    """Give both of an expert's weights the same blocks, which is what their op takes."""
    return weight if isinstance(weight, Tensor) else reblocked(weight, (block, block))
