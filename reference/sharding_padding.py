"""Counts and weights padded until ranks divide them, for engines that ask a config instead of a layout.

The functions bear the names of SGLang's CPU back end and do what those are for; where its code has a trap, the
docstring says what happens here instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.sharding import heads

UNQUANTISED_WIDTH = 32
_SECTIONS = ("thinker_config", "text_config", "vision_config", "audio_config")
_HEADS = ("num_attention_heads", "num_heads", "encoder_attention_heads")
_LINEAR_HEADS = ("linear_num_key_heads", "linear_num_value_heads")
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")


def adjust_config_for_tp(config: Mapping[str, Any], tp: int, block: int | None) -> dict[str, Any]:
    """Return a new config whose heads and expert widths ``tp`` ranks share evenly; ``config`` stays as it is.

    config  an object of ``config.json``, with ``text_config``, ``vision_config``, ``audio_config`` and
            ``thinker_config`` below it where the model has them
    block   side of the weights' scale blocks, None for unquantised weights

    What is padded keeps its true count as ``original_<key>``: norms divide by true widths, never by padded ones. Heads
    are those that ``sharding.heads`` deals, so key/value heads beyond ``tp`` are replicas. ``head_dim`` is written out,
    since the hidden size over a padded count is another number. The width of a vision or audio tower is left alone.

    Source: SGLang update_config.py, which changes the config in place and pads key/value heads where replicas would do.
    Raises ValueError as ``resolve_head_dim`` does.
    """
    if tp < 1:
        raise ValueError(f"tp={tp}; expected at least 1")
    return _adjusted(config, tp, block, is_text=True)


def resolve_head_dim(config: Mapping[str, Any], num_heads: int, *, is_text: bool = True) -> int:
    """Return the width of a head: what the config says, else the hidden size over ``num_heads``.

    A text model's ``qk_head_dim`` comes before ``head_dim``, its ``text_config`` before its top. A tower may call its
    hidden size ``d_model``. MiniMax-M2 says 128, where 3072 // 48 would be 64.

    Raises ValueError where nothing tells, or the hidden size is no multiple: SGLang goes on with None, or rounds down.
    """
    inner = config.get("text_config") or {} if is_text else {}
    places = [(config, "qk_head_dim"), (inner, "head_dim"), (config, "head_dim")] if is_text else [(config, "head_dim")]
    for section, key in places:
        if section.get(key) is not None:
            return int(section[key])
    hidden = next((s[key] for s in (inner, config) for key in ("hidden_size", "d_model") if s.get(key)), None)
    if hidden is None:
        raise ValueError("head_dim is None: the config has no head_dim, hidden_size or d_model; set head_dim")
    if hidden % num_heads:
        raise ValueError(f"head_dim is no whole number: hidden size {hidden} over {num_heads} heads; set head_dim")
    return int(hidden) // num_heads


def get_num_heads_padding_size(tp: int, block: int | None, head_dim: int | None) -> int:
    """Return the number of which a padded count of heads must be a multiple: rows per rank are then whole blocks.

        tp * lcm(head_dim, block) / head_dim

    SGLang divides the lcm by the block: 3 heads of 192 a rank are 576 rows, no multiple of 128. Two are.
    Raises ValueError for a head_dim of None, where SGLang guesses twice ``tp`` for odd ones.
    """
    if head_dim is None:
        raise ValueError("head_dim is None; call resolve_head_dim first")
    return tp if block is None else tp * (math.lcm(head_dim, block) // head_dim)


def pad_loaded_weight(
    weight: Tensor, dim: int, output_sizes: Sequence[int], *, true_sizes: Sequence[int] | None = None
) -> Tensor:
    """Pad each part of a merged weight with zeros to its size in ``output_sizes``.

    true_sizes  lengths of the parts in ``weight``; None: in proportion to ``output_sizes``, in integers

    SGLang rounds the proportion down from a float: 49 rows for [2, 96] become [0, 48]. Parts that were not padded alike
    have no proportion that tells them, so a remainder is an error here.
    Raises ValueError where the parts do not add up, shrink, or are in no whole proportion.
    """
    have, want = weight.shape[dim], sum(output_sizes)
    if true_sizes is None:
        if any(have * size % want for size in output_sizes):
            raise ValueError(f"output_sizes={list(output_sizes)} do not divide {have} in proportion; give true_sizes")
        true_sizes = [have * size // want for size in output_sizes]
    if sum(true_sizes) != have or len(true_sizes) != len(output_sizes):
        raise ValueError(f"true_sizes={list(true_sizes)} do not add up to the {have} of dimension {dim}")
    shrunk = [f"{t} to {o}" for t, o in zip(true_sizes, output_sizes, strict=True) if t > o]
    if shrunk:
        raise ValueError(f"output_sizes={list(output_sizes)} cut parts off: {', '.join(shrunk)}")
    parts = []
    for part, size in zip(weight.split(list(true_sizes), dim), output_sizes, strict=True):
        parts += [part, weight.new_zeros(*weight.shape[:dim], size - part.shape[dim], *weight.shape[dim:][1:])]
    return torch.cat(parts, dim)


def narrow_padded_param_and_loaded_weight(
    param: Tensor, loaded_weight: Tensor, param_start: int, weight_start: int, dim: int, shard_size: int
) -> tuple[Tensor, Tensor]:
    """Return the views to copy between, equally long, and zero what the weight does not fill of ``param!``'s shard.

    The shard is ``param[param_start : param_start + shard_size]`` along ``dim``. The weight has ``shard_size`` from
    ``weight_start`` on, or fewer, or none: then both views are empty.
    """
    filled = min(max(loaded_weight.shape[dim] - weight_start, 0), shard_size)
    param.narrow(dim, param_start + filled, shard_size - filled).zero_()
    start = min(weight_start, loaded_weight.shape[dim])
    return param.narrow(dim, param_start, filled), loaded_weight.narrow(dim, start, filled)


def sharded_weight_loader(dim: int, *, rank: int) -> Callable[[Tensor, Tensor], None]:
    """Return ``load(param!, loaded_weight)``: it copies rank's share of a whole weight, zeros where that has ended."""

    def load(param: Tensor, loaded_weight: Tensor) -> None:
        size = param.shape[dim]
        into, share = narrow_padded_param_and_loaded_weight(param, loaded_weight, 0, rank * size, dim, size)
        into.copy_(share)

    return load


def _adjusted(config: Mapping[str, Any], tp: int, block: int | None, *, is_text: bool) -> dict[str, Any]:
    adjusted = dict(config)
    key = next((name for name in _HEADS if config.get(name) is not None), None)
    if key is not None:
        head_dim = resolve_head_dim(config, config[key], is_text=is_text)
        factor = get_num_heads_padding_size(tp, block, head_dim) // tp
        kv_heads = config.get("num_key_value_heads") or config[key]
        own = heads(config[key], kv_heads, tp=tp, rank=0)
        kv = -(-len(own.kv) // factor) * factor * tp
        counts = {key: kv * (len(own.query) // len(own.kv))}
        if config.get("num_key_value_heads") is not None:
            counts["num_key_value_heads"] = kv
        _replace(adjusted, counts)
        adjusted["head_dim"] = head_dim
    if is_text:
        linear = {name: -(-config[name] // tp) * tp for name in _LINEAR_HEADS if config.get(name)}
        if len(linear) == len(_LINEAR_HEADS):
            # Value heads stand in groups over key heads; rounded apart, the groups would break.
            group = config[_LINEAR_HEADS[1]] // config[_LINEAR_HEADS[0]]
            linear[_LINEAR_HEADS[1]] = linear[_LINEAR_HEADS[0]] * group
        multiple = tp * (block or UNQUANTISED_WIDTH)
        _replace(adjusted, linear | {n: -(-config[n] // multiple) * multiple for n in _WIDTHS if config.get(n)})
    for name in _SECTIONS:
        if isinstance(config.get(name), Mapping):
            adjusted[name] = _adjusted(config[name], tp, block, is_text=name in ("thinker_config", "text_config"))
    return adjusted


def _replace(config: dict[str, Any], counts: Mapping[str, int]) -> None:
    for key, count in counts.items():
        if count != config[key]:
            # A config that is adjusted again keeps the counts of the model.
            config.setdefault(f"original_{key}", config[key])
            config[key] = count
