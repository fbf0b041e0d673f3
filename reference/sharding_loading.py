"""Load one rank's share of a checkpoint: only the slices that it holds are read, a projection at a time.

A rank never holds more than its share and one expert's slice. Where an accelerator takes the weights, slices pass
through pinned memory; on the host they are copied to where they stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Cut, Layout, head_cut, span_cut
from minimax_m2.reference.sharding_blocks import block_of, cut_scale, reblocked
from minimax_m2.reference.weights import BLOCK, BlockQuantized, Checkpoint, LayerWeights, ModelWeights, Progress, Weight

_ANY_EXPERT = "model.layers.0.block_sparse_moe.experts.0.w1.weight"


def load_shard(
    checkpoint: Checkpoint,
    layout: Layout,
    dtype: torch.dtype,
    *,
    keep_quantized: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ModelWeights:
    """Return the share of ``layout.rank``: what ``sharding_weights.shard`` cuts from the whole, bit for bit."""
    reader = _Reader(checkpoint, dtype, keep_quantized=keep_quantized, device=torch.device(device))
    config = checkpoint.config
    vocabulary, total = span_cut(layout.vocabulary(config)), config.num_hidden_layers
    embed_tokens = reader.dense("model.embed_tokens.weight", dim=0, which=vocabulary)
    layers = []
    for index in range(total):
        layers.append(_layer(reader, config, layout, index))
        if progress is not None:
            progress(index + 1, total, f"layers loaded by rank {layout.rank}")
    tied = config.tie_word_embeddings
    return ModelWeights(
        embed_tokens=embed_tokens,
        layers=layers,
        norm=reader.dense("model.norm.weight"),
        lm_head=embed_tokens if tied else reader.dense("lm_head.weight", dim=0, which=vocabulary),
    )


def _layer(reader: _Reader, config: MiniMaxM2Config, layout: Layout, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    attention, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
    own, width, held = layout.heads(config), layout.width(config), layout.experts(config)
    query, kv = (head_cut(which, head_dim=config.head_dim) for which in (own.query, own.kv))
    heads_block, width_block = block_of(config.head_dim), block_of(width.size)
    columns = span_cut(width)
    router = torch.float64 if reader.dtype == torch.float64 else torch.float32
    bias = moe + "e_score_correction_bias"
    experts = [f"{moe}experts.{e}." for e in range(held.start, held.stop)]
    w13 = reader.stacked(
        [[f"{e}w1.weight", f"{e}w3.weight"] for e in experts], held.size, (2 * width.size, config.hidden_size), columns,
        dim=-2, block=width_block,
    )  # fmt: skip
    w2 = reader.stacked(
        [[f"{e}w2.weight"] for e in experts], held.size, (config.hidden_size, width.size), columns,
        dim=-1, block=width_block,
    )  # fmt: skip
    return LayerWeights(
        input_layernorm=reader.dense(prefix + "input_layernorm.weight"),
        qkv_proj=_merged(
            [
                reader.weight(f"{attention}{name}_proj.weight", which, dim=-2, block=heads_block)
                for name, which in (("q", query), ("k", kv), ("v", kv))
            ]
        ),
        q_norm=reader.dense(attention + "q_norm.weight", dim=0, which=query),
        k_norm=reader.dense(attention + "k_norm.weight", dim=0, which=kv),
        o_proj=reader.weight(attention + "o_proj.weight", query, dim=-1, block=heads_block),
        post_attention_layernorm=reader.dense(prefix + "post_attention_layernorm.weight"),
        gate=reader.dense(moe + "gate.weight", dtype=router),
        e_score_correction_bias=reader.dense(bias, dtype=router) if config.use_routing_bias else None,
        w13=w13,
        w2=w2,
    )


class _Reader:
    """Reads cuts of a checkpoint's tensors in the dtype and to the device asked for."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, *, keep_quantized: bool, device: torch.device
    ) -> None:  # fmt: skip
        self._checkpoint = checkpoint
        self.dtype = dtype
        self._keep_quantized = keep_quantized
        self._device = device

    def dense(
        self, name: str, *, dim: int = 0, which: Cut | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:  # fmt: skip
        """Read a tensor, or a cut of it, that is never quantised."""
        return self._placed(self._checkpoint.read_cut(name, which, dim=dim).to(dtype or self.dtype))

    def weight(self, name: str, which: Cut, *, dim: int, block: int) -> Weight:
        """Read a cut of a projection along its rows (``dim=-2``) or columns, dequantised unless kept."""
        stored = self._checkpoint.read_cut(name, which, dim=2 + dim)
        if stored.dtype != torch.float8_e4m3fn:
            return self._placed(stored.to(self.dtype))
        scale = self._checkpoint.read_cut(f"{name}_scale_inv", None)
        scale = cut_scale(scale, which, dim=dim, side=BLOCK, block=block)
        q = BlockQuantized(stored, scale, (block, BLOCK) if dim == -2 else (BLOCK, block))
        if not self._keep_quantized:
            return self._placed(q.dequantized(self.dtype))
        return BlockQuantized(self._placed(q.weight), self._placed(q.scale), q.block)

    def stacked(
        self, names: Sequence[Sequence[str]], count: int, shape: tuple[int, int], which: Cut, *, dim: int, block: int
    ) -> Weight:
        """Read each expert's cuts, one below the other, straight to their place in ``[count, *shape]``.

        Experts beyond those named are zeros.
        """
        kept = self._keep_quantized and self._checkpoint.is_quantized(_ANY_EXPERT)
        whole = torch.zeros(count, *shape, dtype=torch.float8_e4m3fn if kept else self.dtype, device=self._device)
        grid = [-(-size // block) for size in shape]
        scale = torch.zeros(count, *grid, device=self._device) if kept else None
        for place, parts in enumerate(names):
            one = _merged([self.weight(name, which, dim=dim, block=block) for name in parts])
            if isinstance(one, BlockQuantized) and scale is not None:
                one = reblocked(one, (block, block))
                scale[place] = one.scale
                # Not every back end assigns floats of one byte.
                whole.view(torch.uint8)[place] = one.weight.view(torch.uint8)
            elif isinstance(one, Tensor):
                whole[place] = one
        return whole if scale is None else BlockQuantized(whole, scale, (block, block))

    def _placed(self, x: Tensor) -> Tensor:
        return x if self._device.type == "cpu" else x.pin_memory().to(self._device)


def _merged(parts: Sequence[Weight]) -> Weight:
    """Put the rows of parts below each other, in blocks that none of their seams cuts."""
    plain = [part for part in parts if isinstance(part, Tensor)]
    if plain:
        return torch.cat(plain)
    quantized = [part for part in parts if isinstance(part, BlockQuantized)]
    rows = math.gcd(*(part.block[0] for part in quantized), *(part.weight.shape[0] for part in quantized[:-1]))
    cut_alike = [reblocked(part, (rows, part.block[1])) for part in quantized]
    codes = torch.cat([part.weight.view(torch.uint8) for part in cut_alike]).view(torch.float8_e4m3fn)
    return BlockQuantized(codes, torch.cat([part.scale for part in cut_alike]), cut_alike[0].block)
