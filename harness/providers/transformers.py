"""Hugging Face transformers as a second oracle of the whole model, stock and lifted to float64.

Its module forces float32 in RMSNorm, in the router's sigmoid, in the angles and in softmax. The lifted module is a
copy of its source, made in memory when it is asked for, in which those steps are float64. Both run eager attention
and eager experts, the only path that takes float64.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.weights import ModelWeights, Weight

# How often each way of writing float32 stands in the module of transformers 5.23.0, and what lifts it.
LIFTS = {"torch.float32": "torch.float64", ".float()": ".double()", "dtype=torch.float)": "dtype=torch.double)"}
LIFTED_PLACES = 13


class OracleRefused(RuntimeError):
    """The transformers installed here cannot serve as an oracle; the message says why."""


class TransformersModel:
    """The model of ``config`` and ``weights`` as transformers computes it: ``model(ids)`` like the reference's."""

    def __init__(
        self,
        config: MiniMaxM2Config,
        weights: ModelWeights,
        *,
        dtype: torch.dtype = torch.float64,
        lifted: bool = False,
    ) -> None:
        """Build it in ``dtype``; raises OracleRefused if this transformers ignores ``rotary_dim``."""
        module = lifted_module() if lifted else stock_module()
        refuse_full_rotation(module)
        self.module = module.MiniMaxM2ForCausalLM(_config(config)).eval().to(dtype)
        self.module.requires_grad_(False)
        _copy(weights, self.module, config)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return logits: ids ``[T]`` -> ``[T, V]``, ``[B, T]`` -> ``[B, T, V]``."""
        rows = ids if ids.dim() == 2 else ids[None]
        logits: Tensor = self.module(rows, use_cache=False).logits
        return logits.reshape(*ids.shape, logits.shape[-1])


@lru_cache(1)
def stock_module() -> ModuleType:
    """Import transformers' module of the model as it is."""
    import transformers.models.minimax_m2.modeling_minimax_m2 as stock

    return stock


@lru_cache(1)
def lifted_module() -> ModuleType:
    """Load a copy of the module with its float32 steps in float64; nothing of it stays on disk.

    Raises OracleRefused if there are not ``LIFTED_PLACES`` such steps: then the source changed and needs a look.
    """
    import transformers

    source = inspect.getsource(stock_module())
    places = sum(source.count(float32) for float32 in LIFTS)
    if places != LIFTED_PLACES:
        raise OracleRefused(
            f"transformers {transformers.__version__} writes float32 in {places} places of its MiniMax-M2, "
            f"{LIFTED_PLACES} are known: read its module again before lifting it"
        )
    for float32, float64 in LIFTS.items():
        source = source.replace(float32, float64)
    name = "transformers.models.minimax_m2.modeling_minimax_m2_lifted"
    with tempfile.TemporaryDirectory() as folder:
        # A file, because transformers' decorators read the source of what they decorate.
        file = Path(folder) / "modeling_minimax_m2_lifted.py"
        file.write_text(source, encoding="utf-8")
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise OracleRefused(f"{file} cannot be loaded as a module")
        module = module_from_spec(spec)
        # Registered under transformers' package, so that its relative imports resolve.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def refuse_full_rotation(module: ModuleType) -> None:
    """Raise OracleRefused if ``module`` rotates a whole head although ``rotary_dim`` says 8 of its 32 channels."""
    import transformers

    asked = MiniMaxM2Config(hidden_size=32, num_attention_heads=1, num_key_value_heads=1, head_dim=32, rotary_dim=8)
    rotary = module.MiniMaxM2RotaryEmbedding(_config(asked))
    width = rotary(torch.zeros(1, 1, 32), torch.zeros(1, 1, dtype=torch.long))[0].shape[-1]
    if width != asked.rotary_dim:
        raise OracleRefused(
            f"transformers {transformers.__version__} rotates {width} channels of a head although rotary_dim="
            f"{asked.rotary_dim}; versions before 5.18 ignore it (transformers#48241): install transformers==5.23.0"
        )


def _config(config: MiniMaxM2Config) -> Any:
    from transformers import MiniMaxM2Config as TheirConfig

    # transformers truncates head_dim * factor, which loses a channel for widths such as 30 of 44; half a channel more
    # brings every even width through.
    partial = 1.0 if config.rotary_dim == config.head_dim else (config.rotary_dim + 0.5) / config.head_dim
    options: dict[str, Any] = dataclasses.asdict(config)
    for ours in ("use_routing_bias", "num_mtp_modules", "quantization_config", "rope_theta"):
        del options[ours]
    options |= {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": partial,
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "experts_implementation": "eager",
        "attn_implementation": "eager",
    }
    return TheirConfig(**options)


def _copy(weights: ModelWeights, model: Any, config: MiniMaxM2Config) -> None:
    pairs: list[tuple[Any, Weight]] = [
        (model.model.embed_tokens.weight, weights.embed_tokens),
        (model.model.norm.weight, weights.norm),
        (model.lm_head.weight, weights.lm_head),
    ]
    for theirs, ours in zip(model.model.layers, weights.layers, strict=True):
        qkv = _plain(ours.qkv_proj).split([config.q_width, config.kv_width, config.kv_width])
        bias = ours.e_score_correction_bias
        pairs += [
            (theirs.input_layernorm.weight, ours.input_layernorm),
            (theirs.post_attention_layernorm.weight, ours.post_attention_layernorm),
            (theirs.self_attn.q_proj.weight, qkv[0]),
            (theirs.self_attn.k_proj.weight, qkv[1]),
            (theirs.self_attn.v_proj.weight, qkv[2]),
            (theirs.self_attn.q_norm.weight, ours.q_norm),
            (theirs.self_attn.k_norm.weight, ours.k_norm),
            (theirs.self_attn.o_proj.weight, ours.o_proj),
            (theirs.mlp.gate.weight, ours.gate),
            (theirs.mlp.e_score_correction_bias, torch.zeros(config.num_local_experts) if bias is None else bias),
            (theirs.mlp.experts.gate_up_proj, ours.w13),
            (theirs.mlp.experts.down_proj, ours.w2),
        ]
    for parameter, weight in pairs:
        parameter.copy_(_plain(weight))


def _plain(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.dequantized(torch.float64)
