"""config.json of the released checkpoints and of transformers is read; what is not implemented is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from minimax_m2.reference.config import MiniMaxM2Config, QuantizationConfig

M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attn_type_list": [1] * 62,
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "model_type": "minimax_m2",
    "mtp_transformer_layers": 1,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "float8_e4m3fn",
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "transformers_version": "4.46.1",
    "use_cache": True,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
RELEASED = {"M2": M2, "M2.1": M2, "M2.5": M2, "M2.7": {**M2, "max_position_embeddings": 204800}}


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_are_read(name: str) -> None:
    config = MiniMaxM2Config.from_json(json.dumps(RELEASED[name]))
    positions = 204800 if name == "M2.7" else 196608
    assert config == MiniMaxM2Config(quantization_config=QuantizationConfig(), max_position_embeddings=positions)


@pytest.mark.parametrize("name", RELEASED)
def test_what_transformers_saves_is_what_it_read(name: str, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.MiniMaxM2Config(**RELEASED[name]).save_pretrained(tmp_path)
    assert MiniMaxM2Config.from_pretrained(tmp_path) == MiniMaxM2Config.from_json(RELEASED[name])


def test_the_way_transformers_writes_it_is_read() -> None:
    written = {k: v for k, v in M2.items() if k not in ("rotary_dim", "rope_theta", "quantization_config")}
    written["rope_parameters"] = {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"}
    config = MiniMaxM2Config.from_json(json.dumps(written))
    assert (config.rotary_dim, config.rope_theta, config.quantization_config) == (32, 10000.0, None)


@pytest.mark.parametrize("head_dim", [40, 56, 112, 128])
def test_every_rotary_width_survives_its_factor(head_dim: int) -> None:
    widths = range(2, head_dim + 1, 2)
    rope = [{"partial_rotary_factor": width / head_dim} for width in widths]
    read = [MiniMaxM2Config.from_json({"head_dim": head_dim, "rope_parameters": r}).rotary_dim for r in rope]
    assert read == list(widths)


ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_parameters": ROPE},
        {"rope_parameters": ROPE, "head_dim": 96},
        {"rope_parameters": ROPE, "rotary_dim": 32},
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}},
        {"rotary_dim": 48, "head_dim": 96},
    ],
    ids=str,
)
def test_as_many_channels_turn_as_in_transformers(raw: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RotaryEmbedding

    rotary = MiniMaxM2RotaryEmbedding(transformers.MiniMaxM2Config(**raw))
    assert 2 * len(rotary.inv_freq) == MiniMaxM2Config.from_json(raw).rotary_dim


def test_a_missing_key_takes_the_value_of_m2() -> None:
    assert MiniMaxM2Config.from_json("{}") == MiniMaxM2Config()


def test_the_query_width_is_not_the_hidden_size() -> None:
    config = MiniMaxM2Config()
    assert (config.q_width, config.kv_width, config.hidden_size) == (6144, 1024, 3072)


def test_tied_embeddings_are_read() -> None:
    assert MiniMaxM2Config.from_json({"tie_word_embeddings": True}).tie_word_embeddings


REFUSED: dict[str, Any] = {
    "sliding_window": 4096,
    "num_attention_sinks": 4,
    "attn_logit_softcapping": 30.0,
    "shared_intermediate_size": 8192,
    "scoring_func": "softmax",
    "use_qk_norm": False,
    "qk_norm_type": "per_head",
    "hidden_act": "gelu",
    "attention_bias": True,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "norm_topk_prob": False,
    "rope_scaling": {"type": "yarn", "factor": 4.0},
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "first_k_dense_replace": 3,
    "mlp_only_layers": [0, 1],
    "decoder_sparse_step": 2,
    "moe_layer_freq": 2,
    "swiglu_limit": 7.0,
    "attention_type": "linear_attention",
    "router_dtype": "bfloat16",
    "qk_layernorm": False,
    "use_gemma_norm": True,
    "num_experts": 128,
    "partial_rotary_factor": "0.5",
    "attn_type_list": 7,
    "layer_types": "full_attention",
    "num_hidden_layers": "62",
    "rms_norm_eps": "1e-6",
    "head_dim": "128",
    "rope_parameters": 5,
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_implemented_is_refused_by_name_and_value(key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}={REFUSED[key]!r}")):
        MiniMaxM2Config.from_json(json.dumps({**M2, key: REFUSED[key]}))


@pytest.mark.parametrize(
    "key, meant, other",
    [("attn_type_list", 1, 0), ("layer_types", "full_attention", "sliding_attention"), ("moe_layer_freq", 1, 0)],
)
def test_every_layer_is_full_attention_and_experts(key: str, meant: object, other: object) -> None:
    assert MiniMaxM2Config.from_json({**M2, key: [meant] * 62}) == MiniMaxM2Config.from_json(M2)
    with pytest.raises(ValueError, match=re.escape(f"{key}={other!r} for layers [0, 61]")):
        MiniMaxM2Config.from_json({**M2, key: [other, *[meant] * 60, other]})
    with pytest.raises(ValueError, match=f"{key} has 61 entries for 62 layers"):
        MiniMaxM2Config.from_json({key: [meant] * 61})


QUANTIZATION_REFUSED: dict[str, Any] = {
    "quant_method": "awq",
    "weight_block_size": [64, 64],
    "activation_scheme": "static",
    "fmt": "e5m2",
    "scale_fmt": "ue8m0",
    "expert_dtype": "fp4",
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    "modules_to_convert": ["embed_tokens"],
    "modules_to_not_convert": "gate",
}


@pytest.mark.parametrize("key", QUANTIZATION_REFUSED)
def test_other_quantisations_are_refused_by_name_and_value(key: str) -> None:
    quantization = {**M2["quantization_config"], key: QUANTIZATION_REFUSED[key]}
    with pytest.raises(ValueError, match=re.escape(f"quantization_config.{key}={quantization[key]!r}")):
        MiniMaxM2Config.from_json({**M2, "quantization_config": quantization})


def test_every_refusal_stands_in_one_error() -> None:
    with pytest.raises(ValueError, match=r"(?s)hidden_act='gelu'.*sliding_window=512.*vocab_size='9'"):
        MiniMaxM2Config.from_json({**M2, "hidden_act": "gelu", "sliding_window": 512, "vocab_size": "9"})


@pytest.mark.parametrize(
    "key, value",
    [("rope_type", "yarn"), ("factor", 2.0), ("mrope_section", [16, 24]), ("full_attention", {"rope_theta": 1e6})],
)
def test_what_the_rotation_does_not_compute_is_refused_by_name_and_value(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"rope_parameters.{key}={value!r}")):
        MiniMaxM2Config.from_json({**M2, "rope_parameters": {key: value}})


@pytest.mark.parametrize("factor", ["0.5", True, 0.0, 1.5, float("nan")], ids=repr)
def test_a_rotary_factor_is_a_part_of_one(factor: object) -> None:
    with pytest.raises(ValueError, match=f"partial_rotary_factor={factor!r}; expected a number"):
        MiniMaxM2Config.from_json({**M2, "rope_parameters": {"partial_rotary_factor": factor}})


def test_two_rotary_widths_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rotary_dim=64 but partial_rotary_factor=1.0 means 128"):
        MiniMaxM2Config.from_json({**M2, "rope_parameters": {"partial_rotary_factor": 1.0}})


IMPOSSIBLE: dict[str, Any] = {
    "num_key_value_heads": 7,
    "num_experts_per_tok": 257,
    "rotary_dim": 130,
    "hidden_size": 0,
    "num_hidden_layers": 2.5,
    "vocab_size": True,
    "rope_theta": float("inf"),
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_impossible_sizes_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}={IMPOSSIBLE[key]}"):
        MiniMaxM2Config.from_json({**M2, "attn_type_list": None, key: IMPOSSIBLE[key]})


def test_a_folder_without_config_is_named(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        MiniMaxM2Config.from_pretrained(tmp_path)
