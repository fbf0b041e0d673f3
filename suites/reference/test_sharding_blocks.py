"""FP8 shares that straddle a block dequantise to the bits of the whole, at every number of ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Cut, Layout, Span, cut, span_cut
from minimax_m2.reference.sharding_blocks import block_of, cut_quantized, cut_scale, reblocked
from minimax_m2.reference.sharding_weights import shard, shard_layer
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, Weight

# Expert width and head width are M2's: 1536 over 8 ranks is 192, one block and a half. The rest is as small as it goes.
CONFIG = MiniMaxM2Config(
    vocab_size=31, hidden_size=136, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=12,
    num_key_value_heads=4, head_dim=128, rotary_dim=64, num_local_experts=3, num_experts_per_tok=2,
)  # fmt: skip


def quantized(*shape: int, seed: int) -> BlockQuantized:
    """Draw codes, and a scale for each block that no other has."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    count = int(torch.tensor(grid).prod())
    return BlockQuantized(codes, torch.arange(1.0, 1 + count).reshape(grid))


def layer_of(config: MiniMaxM2Config) -> LayerWeights:
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    return dataclasses.replace(
        random_weights(dataclasses.replace(config, intermediate_size=1), seed=3).layers[0],
        qkv_proj=quantized(config.q_width + 2 * config.kv_width, hidden, seed=1),
        o_proj=quantized(hidden, config.q_width, seed=2),
        w13=quantized(experts, 2 * inner, hidden, seed=3),
        w2=quantized(experts, hidden, inner, seed=4),
    )


LAYER = layer_of(CONFIG)


def dense(weight: Weight) -> Tensor:
    assert isinstance(weight, BlockQuantized)
    return weight.dequantized(torch.float64)


def layouts(tp: int, widths: str) -> list[Layout]:
    ep = tp if widths == "ep" else 1
    return [Layout(tp=tp, ep=ep, rank=rank, widths=widths) for rank in range(tp)]


@pytest.mark.parametrize("widths", ["reblock", "pad", "ep"])
@pytest.mark.parametrize("tp", range(1, 17))
def test_dequantised_shares_put_together_are_the_dequantised_whole(tp: int, widths: str) -> None:
    shares = [(layout, shard_layer(LAYER, CONFIG, layout)) for layout in layouts(tp, widths)]
    w13, w2 = dense(LAYER.w13), dense(LAYER.w2)
    seen13, seen2 = torch.full_like(w13, torch.nan), torch.full_like(w2, torch.nan)
    for layout, share in shares:
        experts, width = layout.experts(CONFIG), layout.width(CONFIG)
        own, length = slice(experts.start, experts.stop), width.stop - width.start
        local13, local2 = dense(share.w13), dense(share.w2)
        for half in range(2):
            rows = slice(half * 1536 + width.start, half * 1536 + width.stop)
            seen13[own, rows] = local13[: own.stop - own.start, half * width.size :][:, :length]
            assert not local13[:, half * width.size + length : (half + 1) * width.size].any()
        seen2[own, :, width.start : width.stop] = local2[: own.stop - own.start, :, :length]
        assert not local2[..., length:].any()
    assert torch.equal(seen13, w13)
    assert torch.equal(seen2, w2)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192])
@pytest.mark.parametrize("tp", [1, 2, 3, 5, 6, 7, 8, 16])
def test_heads_of_any_width_keep_their_scales(tp: int, head_dim: int) -> None:
    config = dataclasses.replace(CONFIG, head_dim=head_dim)
    layer, plain = layer_of(config), layer_of(config)
    plain = dataclasses.replace(plain, qkv_proj=dense(layer.qkv_proj), o_proj=dense(layer.o_proj))
    for layout in layouts(tp, "reblock"):
        share, expected = (shard_layer(given, config, layout) for given in (layer, plain))
        assert torch.equal(dense(share.qkv_proj), expected.qkv_proj)  # type: ignore[arg-type]
        assert torch.equal(dense(share.o_proj), expected.o_proj)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tp, widths, block", [(4, "reblock", 128), (8, "reblock", 64), (5, "reblock", 64), (8, "pad", 128), (4, "ep", 128)]
)
def test_blocks_are_alike_on_all_ranks_and_in_both_weights(tp: int, widths: str, block: int) -> None:
    shares = [shard_layer(LAYER, CONFIG, layout) for layout in layouts(tp, widths)]
    weights = [weight for share in shares for weight in (share.w13, share.w2)]
    assert {weight.block for weight in weights if isinstance(weight, BlockQuantized)} == {(block, block)}


def test_the_floored_scale_offset_is_another_weight_at_192() -> None:
    whole = quantized(1536, 8, seed=5)
    own = span_cut(Span(192, 384, 192))
    right = cut_quantized(whole, own, dim=-2, block=block_of(192))
    # The trap: 192 // 128 = 1 block a rank, so rank 1 begins at block 1 and takes two.
    floored = BlockQuantized(right.weight, whole.scale[1:3])
    assert torch.equal(right.dequantized(torch.float64), whole.dequantized(torch.float64)[192:384])
    assert not torch.equal(floored.dequantized(torch.float64), whole.dequantized(torch.float64)[192:384])


def test_padding_behind_both_halves_mixes_them() -> None:
    layout = Layout(tp=5, rank=4)
    width, share = layout.width(CONFIG), shard_layer(LAYER, CONFIG, layout)
    assert width == Span(1280, 1536, 320)
    expected = dense(LAYER.w13)[:, 1536 + width.start : 1536 + width.stop]
    # The trap: zeros behind [gate; up] leave up where gate's padding belongs.
    halves = [dense(LAYER.w13)[:, start + width.start : start + width.stop] for start in (0, 1536)]
    trapped = torch.cat([*halves, torch.zeros(3, 2 * 64, 136)], 1)
    up = slice(320, 320 + 256)
    assert torch.equal(dense(share.w13)[:, up], expected)
    assert not torch.equal(trapped[:, up], expected)


def test_a_block_that_meets_two_scales_is_refused() -> None:
    scale = torch.arange(1.0, 13.0)[:, None]
    with pytest.raises(ValueError, match="block=128: a block of the share lies in two blocks of 128"):
        cut_scale(scale, span_cut(Span(192, 384, 192)), dim=-2, side=128, block=128)


def test_zeros_take_the_scale_before_them_or_one() -> None:
    scale = torch.tensor([[5.0, 7.0]])
    which = Cut(((96, 32), (-1, 64), (128, 32)))
    assert cut_scale(scale, which, dim=-1, side=128, block=32).tolist() == [[5.0, 1.0, 1.0, 7.0]]
    assert cut_scale(scale, Cut(((128, 96), (-1, 32))), dim=-1, side=128, block=128).tolist() == [[7.0]]


def test_finer_blocks_hold_the_same_weights_and_coarser_ones_are_refused() -> None:
    whole = quantized(2, 200, 136, seed=6)
    assert torch.equal(dense(reblocked(whole, (64, 32))), dense(whole))
    with pytest.raises(ValueError, match=r"block=\(96, 128\) does not divide \(128, 128\)"):
        reblocked(whole, (96, 128))


def test_a_tied_head_is_the_embedding_on_every_rank() -> None:
    weights = random_weights(dataclasses.replace(CONFIG, intermediate_size=8), seed=1)
    tied = dataclasses.replace(weights, lm_head=weights.embed_tokens)
    config = dataclasses.replace(CONFIG, intermediate_size=8)
    for layout in layouts(3, "reblock"):
        share = shard(tied, config, layout)
        assert share.lm_head is share.embed_tokens
        assert torch.equal(share.lm_head, cut(weights.embed_tokens, span_cut(layout.vocabulary(config)), dim=0))
