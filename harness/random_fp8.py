"""Weights of a model too large to be read from anywhere: drawn layer by layer on the device, e4m3 in blocks of 128.

Every rank draws the whole layer and keeps its share, so ranks and one device hold the same model; no more than one
whole layer is ever there beside the shares. Those get their memory before the layers that they are cut from: a share
put where a larger tensor was would leave the rest of that place to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout, cut, span_cut
from minimax_m2.reference.sharding_weights import shard_layer
from minimax_m2.reference.weights import BLOCK, BlockQuantized, LayerWeights, ModelWeights

# Codes are normal with this deviation: a block's largest comes near 448, e4m3's largest.
DEVIATION = 100.0
NAMES = tuple(field.name for field in fields(LayerWeights))
# Elements drawn at once, as float32 before they become codes.
AT_ONCE = 1 << 24
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
    layout, layers = layout or Layout(), list[LayerWeights]()
    for index in range(config.num_hidden_layers):
        share = _layer(config, _generator(device, seed, index))
        if layout.world > 1:
            share = shard_layer(share, config, layout)
            layers = layers or _room(share, config.num_hidden_layers)
            _copy(share, layers[index])
        else:
            layers.append(share)
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


def tensors_of(weight: object) -> list[Tensor]:
    """A weight's tensors: its codes and scales, itself, or none."""
    if isinstance(weight, BlockQuantized):
        return [weight.weight, weight.scale]
    return [weight] if isinstance(weight, Tensor) else []


def _room(share: LayerWeights, count: int) -> list[LayerWeights]:
    """Memory for so many shares, in places of their own."""
    if (device := share.input_layernorm.device).type != "cpu":
        torch.get_device_module(device).empty_cache()
    return [replace(share, **{name: _empty(getattr(share, name)) for name in NAMES}) for _ in range(count)]


def _empty(weight: Any) -> Any:
    if isinstance(weight, BlockQuantized):
        return weight._replace(weight=torch.empty_like(weight.weight), scale=torch.empty_like(weight.scale))
    return torch.empty_like(weight)


def _copy(share: LayerWeights, into: LayerWeights) -> None:
    for name in NAMES:
        for source, target in zip(tensors_of(getattr(share, name)), tensors_of(getattr(into, name)), strict=True):
            target.copy_(source)


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
