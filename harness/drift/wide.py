"""MiniMax-M2 at its own width and depth with drawn e4m3 weights, a layer at a time: 62 layers in the memory of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.timed_models import LAYER
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.weights import BLOCK, BlockQuantized, LayerWeights, ModelWeights

# The whole but for its vocabulary: the head of 200,064 rows would take longer than ten layers and shows no more.
M2 = replace(LAYER, num_hidden_layers=62, num_local_experts=256)
# A code has a random sign and significand, and the exponent of 1..2: magnitudes of 1.47 in the root mean square.
SIGNIFICANT, EXPONENT, MAGNITUDE = 0x87, 0x38, 1.47


class DrawnLayers(Sequence[LayerWeights]):
    """Layers that are drawn when they are asked for, each time the same; nothing of them is kept."""

    def __init__(self, config: MiniMaxM2Config, *, seed: int = 0) -> None:
        self._config, self._seed = config, seed

    def __len__(self) -> int:
        return self._config.num_hidden_layers

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"layer {index} is outside 0..{len(self) - 1}")
        c, dice = self._config, np.random.Generator(np.random.Philox(key=[self._seed, index]))
        width, E = c.intermediate_size, c.num_local_experts
        return LayerWeights(
            input_layernorm=norm_weight(dice, c.hidden_size),
            qkv_proj=codes(dice, c.q_width + 2 * c.kv_width, c.hidden_size),
            q_norm=norm_weight(dice, c.q_width),
            k_norm=norm_weight(dice, c.kv_width),
            o_proj=codes(dice, c.hidden_size, c.q_width),
            post_attention_layernorm=norm_weight(dice, c.hidden_size),
            gate=torch.from_numpy(dice.standard_normal((E, c.hidden_size), np.float32)) * c.hidden_size**-0.5,
            e_score_correction_bias=torch.from_numpy(dice.standard_normal(E, np.float32)),
            w13=codes(dice, E, 2 * width, c.hidden_size),
            w2=codes(dice, E, c.hidden_size, width),
        )

    def __iter__(self) -> Iterator[LayerWeights]:
        return (self[i] for i in range(len(self)))


def codes(dice: np.random.Generator, *shape: int) -> BlockQuantized:
    """An e4m3 weight with a gain near 1, and a scale of its own for each block.

    Experts are windows of one random pool, each from a place of its own: to draw them all takes a minute a layer.
    """
    count, each = int(np.prod(shape[:-2])), shape[-2] * shape[-1]
    pool = np.frombuffer(dice.bytes(2 * each), np.uint8) & SIGNIFICANT | EXPONENT
    raw = np.empty((count, each), np.uint8)
    for one, start in zip(raw, dice.integers(0, each, count), strict=True):
        one[:] = pool[start : start + each]
    raw = raw.reshape(shape)
    grid = (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
    scale = dice.uniform(0.7, 1.3, grid).astype(np.float32) * (shape[-1] ** -0.5 / MAGNITUDE)
    return BlockQuantized(torch.from_numpy(raw).view(torch.float8_e4m3fn), torch.from_numpy(scale), (BLOCK, BLOCK))


def norm_weight(dice: np.random.Generator, width: int) -> Tensor:
    """Weights that scatter around 1."""
    return (1 + torch.from_numpy(dice.standard_normal(width, np.float32)) / 5).to(torch.bfloat16)


def wide_subject(*, layers: int = M2.num_hidden_layers, length: int = 2, seed: int = 0) -> Subject:
    """MiniMax-M2's widths and 256 experts, so many layers, on drawn tokens of which the last is decoded."""
    config = replace(M2, num_hidden_layers=layers)
    dice = torch.Generator().manual_seed(seed)

    def table() -> Tensor:
        return torch.randn(config.vocab_size, config.hidden_size, generator=dice).to(torch.bfloat16)

    embedding, head = table(), table() * config.hidden_size**-0.5
    norm = norm_weight(np.random.Generator(np.random.Philox(key=[seed, layers])), config.hidden_size)
    weights = ModelWeights(embed_tokens=embedding, layers=DrawnLayers(config, seed=seed), norm=norm, lm_head=head)
    ids = torch.randint(config.vocab_size, (length,), generator=dice)
    return Subject(name="m2-width", config=config, weights=weights, ids=ids)
