"""Read a Hugging Face ``config.json`` of the MiniMax-M2 family, and refuse what the reference does not compute."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the reference computes, per key of config.json: the values that mean it. Any other value is refused by name.
_ACCEPTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "use_qk_norm": (True,),
    "qk_norm_type": ("per_layer",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "norm_topk_prob": (True, None),
    "routed_scaling_factor": (1.0, None),
    "n_group": (1, None),
    "topk_group": (1, None),
    "num_expert_group": (1, None),
    "shared_intermediate_size": (0, None),
    "num_shared_experts": (0, None),
    "n_shared_experts": (0, None),
    "sliding_window": (None, 0),
    "use_sliding_window": (False, None),
    "attention_sinks": (False, None),
    "num_attention_sinks": (0, None),
    "use_attention_sinks": (False, None),
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "logits_soft_cap": (None, 0),
    "rope_scaling": (None,),
    "layernorm_full_attention_alpha": (1.0, None),
    "layernorm_full_attention_beta": (1.0, None),
    "layernorm_mlp_alpha": (1.0, None),
    "layernorm_mlp_beta": (1.0, None),
    "postnorm": (False, None),
    "attention_type": ("full_attention", None),
    "attention_output_gate": (False, None),
    "qk_layernorm": (True, None),
    "use_gemma_norm": (False, None),
    "first_k_dense_replace": (0, None),
    "mlp_only_layers": ([], None),
    "decoder_sparse_step": (1, None),
    "router_dtype": ("float32", "fp32", None),
    "swiglu_limit": (None,),
    "swiglu_alpha": (1.0, None),
}

# Lists with an entry a layer, and the one entry whose layer the reference computes.
_EVERY_LAYER: dict[str, object] = {"attn_type_list": 1, "layer_types": "full_attention", "moe_layer_freq": 1}

_ROPE_KEYS = ("rope_theta", "rope_type", "type", "partial_rotary_factor")

_ACCEPTED_QUANTIZATION: dict[str, tuple[object, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("float8_e4m3fn", "e4m3", None),
    "activation_scheme": ("dynamic", None),
    "weight_block_size": ((128, 128),),
    "scale_fmt": ("float", "float32", None),
    "expert_dtype": ("fp8", None),
    "kv_cache_scheme": (None,),
    "modules_to_convert": (None, ()),
}

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rms_norm_eps",
    "num_local_experts",
    "num_experts_per_tok",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """FP8 e4m3 weights with one float32 ``weight_scale_inv`` per block of 128 x 128, which is multiplied."""

    quant_method: str = "fp8"
    weight_block_size: tuple[int, int] = (128, 128)
    modules_to_not_convert: tuple[str, ...] = ("gate", "e_score_correction_bias", "lm_head")


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMaxM2Config:
    """Sizes of one model of the family, under the names of ``config.json``; defaults are MiniMax-M2's.

    ``attn_type_list``, ``scoring_func`` and every other key with a single meaning here is checked while reading
    and not kept.
    """

    vocab_size: int = 200064
    hidden_size: int = 3072
    intermediate_size: int = 1536
    num_hidden_layers: int = 62
    num_attention_heads: int = 48
    num_key_value_heads: int = 8
    head_dim: int = 128
    rotary_dim: int = 64
    rope_theta: float = 5_000_000.0
    rms_norm_eps: float = 1e-6
    num_local_experts: int = 256
    num_experts_per_tok: int = 8
    use_routing_bias: bool = True
    max_position_embeddings: int = 196608
    tie_word_embeddings: bool = False
    num_mtp_modules: int = 3
    quantization_config: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        problems = _wrong_types(values) or _wrong_sizes(self)
        if problems:
            raise ValueError("config.json describes no MiniMax-M2:\n" + "\n".join(f"  {line}" for line in problems))

    @property
    def q_width(self) -> int:
        """Width of all query heads, ``Hq * D``."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads, ``Hk * D``."""
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_pretrained(cls, path: str | Path) -> MiniMaxM2Config:
        """Read ``config.json`` in the folder ``path``, or the file ``path`` itself."""
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; a checkpoint holds config.json and *.safetensors")
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> MiniMaxM2Config:
        """Read the text (or the parsed object) of a ``config.json``.

        A missing key takes MiniMax-M2's value. The rotary width is ``rotary_dim`` (released checkpoints) or
        ``head_dim * rope_parameters["partial_rotary_factor"]`` (as transformers writes it); both must agree.
        ``rope_parameters`` with neither rotates whole heads, as transformers does that always writes them.

        Raises ValueError that lists every key whose value the reference does not compute, or has the wrong type.
        Source: config.json of MiniMaxAI/MiniMax-M2, M2.1, M2.5, M2.7; transformers 5.23.0 MiniMaxM2Config.
        """
        raw = json.loads(text) if isinstance(text, str) else dict(text)
        if not isinstance(raw, dict):
            raise ValueError(f"config.json holds a {type(raw).__name__}; expected an object")
        problems = _refusals(raw)
        raw = {**raw, "num_local_experts": raw.get("num_local_experts", raw.get("num_experts"))}
        names = {field.name for field in dataclasses.fields(cls)} - {"quantization_config"}
        values = {name: raw[name] for name in names if raw.get(name) is not None}
        values |= _rotary(raw, values.get("head_dim", cls().head_dim), problems)
        quantization = raw.get("quantization_config")
        if quantization not in (None, {}):
            values["quantization_config"] = _quantization(quantization, problems)
        problems += _wrong_types(values)
        if problems:
            raise ValueError("config.json asks for what is not implemented:\n" + "\n".join(f"  {p}" for p in problems))
        return cls(**values)


def _refusals(raw: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{key}={raw[key]!r}; implemented: {' or '.join(repr(value) for value in accepted)}"
        for key, accepted in _ACCEPTED.items()
        if key in raw and raw[key] not in accepted
    ]
    architectures = raw.get("architectures") or ["MiniMaxM2ForCausalLM"]
    if architectures != ["MiniMaxM2ForCausalLM"]:
        problems.append(f"architectures={architectures!r}; implemented: ['MiniMaxM2ForCausalLM']")
    # The first upload of M2 carried the family's older model_type beside the same architecture.
    model_types = ("minimax_m2", "minimax") if raw.get("architectures") else ("minimax_m2",)
    if raw.get("model_type", "minimax_m2") not in model_types:
        problems.append(f"model_type={raw['model_type']!r}; implemented: 'minimax_m2'")
    experts = raw.get("num_experts")
    if experts is not None and raw.get("num_local_experts", experts) != experts:
        problems.append(f"num_local_experts={raw['num_local_experts']!r} but num_experts={experts!r}; give one of them")
    return problems + [problem for key in _EVERY_LAYER for problem in _layer_refusals(key, raw)]


def _layer_refusals(key: str, raw: Mapping[str, Any]) -> list[str]:
    kinds, meant = raw.get(key), _EVERY_LAYER[key]
    if kinds is None or (key == "moe_layer_freq" and kinds == meant):
        return []
    expected = f"implemented: {meant!r} for every layer"
    if not isinstance(kinds, list | tuple):
        return [f"{key}={kinds!r}; {expected}"]
    wrong: dict[str, list[int]] = {}
    for layer, kind in enumerate(kinds):
        if kind != meant:
            wrong.setdefault(repr(kind), []).append(layer)
    found = [f"{key}={kind} for layers {where}; {expected}" for kind, where in wrong.items()]
    layers = raw.get("num_hidden_layers") or MiniMaxM2Config().num_hidden_layers
    # A number of layers that is no number has a line of its own.
    if isinstance(layers, int) and len(kinds) != layers:
        found.append(f"{key} has {len(kinds)} entries for {layers} layers; {expected}")
    return found


def _rotary(raw: Mapping[str, Any], head_dim: object, problems: list[str]) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        problems.append(f"rope_parameters={rope!r}; expected an object")
        return {}
    problems += [
        f"rope_parameters.{key}={value!r}; implemented: {', '.join(_ROPE_KEYS)} alone"
        for key, value in rope.items()
        if key not in _ROPE_KEYS and value is not None
    ]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        problems.append(f"rope_parameters.rope_type={kind!r}; implemented: 'default'")
    both = {key: _given_twice(key, rope, raw, problems) for key in ("rope_theta", "partial_rotary_factor")}
    found = {} if both["rope_theta"] is None else {"rope_theta": both["rope_theta"]}
    factor = both["partial_rotary_factor"]
    if factor is None:
        if rope and raw.get("rotary_dim") is None and isinstance(head_dim, int):
            found["rotary_dim"] = head_dim
        return found
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
        problems.append(f"partial_rotary_factor={factor!r}; expected a number above 0 and at most 1")
    elif isinstance(head_dim, int):
        # transformers truncates here too; the nudge keeps 24 / 56 * 56 from becoming 23.
        width = math.floor(head_dim * factor + 1e-6)
        if raw.get("rotary_dim", width) not in (width, None):
            problems.append(f"rotary_dim={raw['rotary_dim']!r} but partial_rotary_factor={factor!r} means {width}")
        found["rotary_dim"] = width
    return found


def _given_twice(key: str, rope: Mapping[str, Any], raw: Mapping[str, Any], problems: list[str]) -> Any:
    """Return what rope_parameters or else the top level says; both may, if they agree."""
    inner, outer = rope.get(key), raw.get(key)
    if inner is not None and outer is not None and inner != outer:
        problems.append(f"{key}={outer!r} but rope_parameters has {inner!r}")
    return outer if inner is None else inner


def _quantization(raw: object, problems: list[str]) -> QuantizationConfig | None:
    if not isinstance(raw, Mapping):
        problems.append(f"quantization_config={raw!r}; expected an object")
        return None
    for key, accepted in _ACCEPTED_QUANTIZATION.items():
        value = raw.get(key)
        value = tuple(value) if isinstance(value, list) else value
        if value not in accepted:
            problems.append(f"quantization_config.{key}={raw.get(key)!r}; implemented: {accepted[0]!r}")
    kept = raw.get("modules_to_not_convert") or ()
    if not isinstance(kept, list | tuple) or not all(isinstance(name, str) for name in kept):
        problems.append(f"quantization_config.modules_to_not_convert={kept!r}; expected a list of names")
        return None
    return QuantizationConfig(modules_to_not_convert=tuple(kept))


def _wrong_types(values: Mapping[str, object]) -> list[str]:
    expected = {"int": (int,), "float": (int, float), "bool": (bool,)}
    return [
        f"{field.name}={value!r} is a {type(value).__name__}; expected {field.type}"
        for field in dataclasses.fields(MiniMaxM2Config)
        if field.name in values and str(field.type) in expected
        for value in (values[field.name],)
        if not isinstance(value, expected[str(field.type)]) or (isinstance(value, bool) and field.type != "bool")
    ]


def _wrong_sizes(config: MiniMaxM2Config) -> list[str]:
    problems = [
        f"{name}={getattr(config, name)} is not positive and finite"
        for name in _POSITIVE
        if not 0 < getattr(config, name) < math.inf
    ]
    if problems:
        return problems
    if config.num_attention_heads % config.num_key_value_heads:
        problems.append(
            f"num_attention_heads={config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}"
        )
    if config.num_experts_per_tok > config.num_local_experts:
        problems.append(
            f"num_experts_per_tok={config.num_experts_per_tok} is outside 1..num_local_experts="
            f"{config.num_local_experts}"
        )
    if config.rotary_dim % 2 or not 2 <= config.rotary_dim <= config.head_dim:
        problems.append(f"rotary_dim={config.rotary_dim} is not an even number in 2..head_dim={config.head_dim}")
    if config.num_mtp_modules < 0:
        problems.append(f"num_mtp_modules={config.num_mtp_modules} is negative")
    return problems
