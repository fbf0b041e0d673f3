"""Weights of a model that was never trained, for tests that need many small models and no file."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.weights import LayerWeights, ModelWeights


def random_weights(
    config: MiniMaxM2Config, *, seed: int, bias_scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> ModelWeights:
    """Draw every weight; the same ``seed`` gives the same bits.

    Projections have a gain near 1, so activations keep their size through the layers. Norm weights scatter around 1.
    ``e_score_correction_bias`` is normal times ``bias_scale`` and never left at zero: a model that ignores it differs.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * gain

    def projection(*shape: int) -> Tensor:
        return normal(*shape, gain=shape[-1] ** -0.5).to(dtype)

    def norm_weight(width: int) -> Tensor:
        return (1 + normal(width, gain=0.2)).to(dtype)

    hidden, experts, width = config.hidden_size, config.num_local_experts, config.intermediate_size
    router_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    layers = [
        LayerWeights(
            input_layernorm=norm_weight(hidden),
            qkv_proj=projection(config.q_width + 2 * config.kv_width, hidden),
            q_norm=norm_weight(config.q_width),
            k_norm=norm_weight(config.kv_width),
            o_proj=projection(hidden, config.q_width),
            post_attention_layernorm=norm_weight(hidden),
            gate=normal(experts, hidden, gain=hidden**-0.5).to(router_dtype),
            e_score_correction_bias=normal(experts, gain=bias_scale).to(router_dtype),
            w13=projection(experts, 2 * width, hidden),
            w2=projection(experts, hidden, width),
        )
        for _ in range(config.num_hidden_layers)
    ]
    return ModelWeights(
        embed_tokens=normal(config.vocab_size, hidden).to(dtype),
        layers=layers,
        norm=norm_weight(hidden),
        lm_head=projection(config.vocab_size, hidden),
    )
