"""Weights of a model too large to be read from anywhere: drawn layer by layer on the device, e4m3 in blocks of 128.

Every rank draws the whole layer and keeps its share, so ranks and one device hold the same model; no more than one
whole layer is ever there beside the shares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout, cut, span_cut
from minimax_m2.reference.sharding_weights import shard_layer
from minimax_m2.reference.weights import BLOCK, BlockQuantized, LayerWeights, ModelWeights

# Codes are normal with this deviation: a block's largest comes near 448, e4m3's largest.
DEVIATION = 100.0
# Elements drawn at once, as float32 before they become codes.
AT_ONCE = 1 << 28
# The bias that balances a trained router moves few choices; near uniform routing is what it is trained for.
BIAS = 0.02


def random_fp8(
    config: MiniMaxM2Config,
    *,
    seed: int,
    layout: Layout | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> ModelWeights:
    """A rank's share of a model drawn from ``seed``: projections and experts e4m3, the rest bfloat16 and float32.

    The same seed gives the same bits on every device of one kind; a CPU draws other numbers than a GPU.
    """
    layout, layers = layout or Layout(), []
    for index in range(config.num_hidden_layers):
        whole = _layer(config, _generator(device, seed, index))
        layers.append(whole if layout.world == 1 else shard_layer(whole, config, layout))
        progress(index + 1, config.num_hidden_layers, "layers drawn")
    draw, hidden = _generator(device, seed, config.num_hidden_layers), config.hidden_size
    rows = span_cut(layout.vocabulary(config))
    embed_tokens = cut(_normal(draw, config.vocab_size, hidden).to(torch.bfloat16), rows, dim=0)
    lm_head = cut((_normal(draw, config.vocab_size, hidden) * hidden**-0.5).to(torch.bfloat16), rows, dim=0)
    return ModelWeights(embed_tokens=embed_tokens, layers=layers, norm=_norm(draw, hidden), lm_head=lm_head)


def _layer(config: MiniMaxM2Config, draw: torch.Generator) -> LayerWeights:
    hidden, experts, width = config.hidden_size, config.num_local_experts, config.intermediate_size
    return LayerWeights(
        input_layernorm=_norm(draw, hidden),
        qkv_proj=_quantized(draw, config.q_width + 2 * config.kv_width, hidden),
        q_norm=_norm(draw, config.q_width),
        k_norm=_norm(draw, config.kv_width),
        o_proj=_quantized(draw, hidden, config.q_width),
        post_attention_layernorm=_norm(draw, hidden),
        gate=_normal(draw, experts, hidden) * hidden**-0.5,
        e_score_correction_bias=_normal(draw, experts) * BIAS,
        w13=_quantized(draw, experts, 2 * width, hidden),
        w2=_quantized(draw, experts, hidden, width),
    )


def _generator(device: str, seed: int, part: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(1_000_003 * seed + part)


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, device=draw.device)


def _norm(draw: torch.Generator, width: int) -> Tensor:
    return (1 + 0.2 * _normal(draw, width)).to(torch.bfloat16)


def _quantized(draw: torch.Generator, *shape: int) -> BlockQuantized:
    """Normal codes and a scale a block that differs from its neighbours', of a gain near 1 over the last dimension."""
    weight = torch.empty(shape, dtype=torch.float8_e4m3fn, device=draw.device)
    rows = weight.view(-1, shape[-1])
    for part in rows.split(max(1, AT_ONCE // shape[-1])):
        part.copy_((_normal(draw, *part.shape) * DEVIATION).clamp(-448, 448))
    grid = (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
    factor = 0.5 + torch.rand(grid, generator=draw, device=draw.device)
    return BlockQuantized(weight, factor * (shape[-1] ** -0.5 / DEVIATION))
