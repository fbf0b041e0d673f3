"""The ops a model calls, one callable a name: who offers a step, and what a coarse step is made of where nobody does.

A provider is any module, object or mapping that offers callables under the ops' names. Each step of the model is
called at its coarsest name; where a provider offers only finer ones, the coarse step becomes their composition, so an
override is felt at either grain. ``sources`` tells for every name where its callable came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference import (
    add_rms_norm,
    attention,
    embedding,
    experts,
    fp8_linear,
    kv_cache,
    linear,
    lm_head,
    qk_norm_rope,
    qk_norm_rope_cache,
    rms_norm,
    rope,
    router,
    router_gemm,
    routing,
    swiglu,
)
from minimax_m2.reference.block_dequant import dequantised_if_scaled
from minimax_m2.reference.contract import EXACT

Op = Callable[..., Any]

_REFERENCE: dict[str, Op] = {
    "embedding": embedding.embedding,
    "linear": linear.linear,
    "fp8_linear": fp8_linear.fp8_linear,
    "pack_fp8_linear": fp8_linear.pack_fp8_linear,
    "rms_norm": rms_norm.rms_norm,
    "add_rms_norm": add_rms_norm.add_rms_norm,
    "qk_sum_squares": qk_norm_rope.qk_sum_squares,
    "qk_norm_rope": qk_norm_rope.qk_norm_rope,
    "qk_norm_rope_cache": qk_norm_rope_cache.qk_norm_rope_cache,
    "rope": rope.rope,
    "kv_cache": kv_cache.kv_cache,
    "attention": attention.attention,
    "router_gemm": router_gemm.router_gemm,
    "routing": routing.routing,
    "router": router.router,
    "swiglu": swiglu.swiglu,
    "experts": experts.experts,
    "pack_experts": experts.pack_experts,
    "lm_head": lm_head.lm_head,
}

STEPS = tuple(_REFERENCE)
"""Every name a provider may offer to a model."""

# A packed value is understood only by the op that it was packed for.
_PACKED_BY = {"fp8_linear": "pack_fp8_linear", "experts": "pack_experts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTable:
    """One callable for each step of the model; signatures are the reference functions'."""

    embedding: Op
    linear: Op
    fp8_linear: Op
    pack_fp8_linear: Op
    rms_norm: Op
    add_rms_norm: Op
    qk_sum_squares: Op
    qk_norm_rope_cache: Op
    attention: Op
    router: Op
    experts: Op
    pack_experts: Op
    lm_head: Op
    sources: Mapping[str, str]


def op_table(provider: object = None, *, name: str = "provider") -> OpTable:
    """Fill a table from ``provider``; what it does not offer comes from the reference.

    ``sources`` reads ``name`` for an offered op, ``reference``, or ``composed of rms_norm, rope``. A provider that
    offers nothing gives the reference's table. Raises ValueError for a mapping with a name that is no op.
    """
    offered = _offered(provider)
    entries = _REFERENCE | offered
    sources = {op: name if op in offered else "reference" for op in _REFERENCE}
    for op, (parts, compose) in _COMPOSITIONS.items():
        if op not in offered and any(sources[part] != "reference" for part in parts):
            entries[op] = compose(*(entries[part] for part in parts))
            sources[op] = f"composed of {', '.join(parts)}"
    for op, pack in _PACKED_BY.items():
        if op not in offered:
            entries[pack], sources[pack] = _REFERENCE[pack], "reference"
    fields = OpTable.__dataclass_fields__.keys() - {"sources"}
    return OpTable(**{field: entries[field] for field in fields}, sources=sources)


def _offered(provider: object) -> dict[str, Op]:
    if isinstance(provider, Mapping):
        unknown = sorted(set(provider) - set(_REFERENCE))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no step of the model; steps: {', '.join(sorted(_REFERENCE))}")
        return dict(provider)
    found = {op: getattr(provider, op, None) for op in _REFERENCE}
    return {op: function for op, function in found.items() if callable(function)}


def _compose_add_rms_norm(rms_norm: Op) -> Op:
    def composed(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        total = x + residual
        return rms_norm(total, weight, eps=eps), total

    return composed


def _compose_qk_norm_rope(rms_norm: Op, rope: Op) -> Op:
    def composed(
        qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
        num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if stats is not None:
            raise ValueError(
                "stats are given, but rms_norm and rope see one rank only; offer qk_norm_rope for tensor parallelism"
            )
        heads = (num_heads, num_kv_heads, num_kv_heads)
        q, k, v = qkv.split([count * head_dim for count in heads], -1)
        q, k = rms_norm(q, q_weight, eps=eps), rms_norm(k, k_weight, eps=eps)
        q, k, v = (x.reshape(-1, count, head_dim) for x, count in zip((q, k, v), heads, strict=True))
        return (*rope(q, k, cos_sin, positions, rotary_dim=rotary_dim), v)

    return composed


def _compose_qk_norm_rope_cache(qk_norm_rope: Op, kv_cache: Op) -> Op:
    def composed(
        qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
        k_cache: Tensor, v_cache: Tensor, slots: Tensor, **sizes: Any,
    ) -> Tensor:  # fmt: skip
        q, k, v = qk_norm_rope(qkv, stats, q_weight, k_weight, cos_sin, positions, **sizes)
        kv_cache(k, v, k_cache, v_cache, slots)
        return q

    return composed


def _compose_router(router_gemm: Op, routing: Op) -> Op:
    def composed(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
        return routing(router_gemm(x, weight), bias, **choice)

    return composed


def _compose_experts(swiglu: Op) -> Op:
    def composed(x: Tensor, packed: experts.PackedExperts, weights: Tensor, ids: Tensor) -> Tensor:
        block = (int(packed.block[0]), int(packed.block[1]))
        wide = torch.promote_types(x.dtype, torch.float32)
        y = torch.zeros(x.shape, dtype=wide, device=x.device)
        for expert in ids[ids >= 0].unique().tolist():
            rows, column = (ids == expert).nonzero(as_tuple=True)
            one = slice(expert, expert + 1)
            w13, w2 = (
                dequantised_if_scaled(weight[one], scale[one], block=block, dtype=x.dtype, contract=EXACT)[0]
                for weight, scale in ((packed.w13, packed.w13_scale), (packed.w2, packed.w2_scale))
            )
            down = swiglu(x[rows] @ w13.mT) @ w2.mT
            y = y.index_add(0, rows, down.to(wide) * weights[rows, column, None].to(wide))
        return y.to(x.dtype)

    return composed


def _compose_lm_head(linear: Op) -> Op:
    def composed(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return linear(x if rows is None else x[rows], weight, out_dtype=wide)[:, :vocab_size]

    return composed


# In order of use: qk_norm_rope_cache is made of a qk_norm_rope that may itself be composed.
_COMPOSITIONS: dict[str, tuple[tuple[str, ...], Callable[..., Op]]] = {
    "add_rms_norm": (("rms_norm",), _compose_add_rms_norm),
    "qk_norm_rope": (("rms_norm", "rope"), _compose_qk_norm_rope),
    "qk_norm_rope_cache": (("qk_norm_rope", "kv_cache"), _compose_qk_norm_rope_cache),
    "router": (("router_gemm", "routing"), _compose_router),
    "experts": (("swiglu",), _compose_experts),
    "lm_head": (("linear",), _compose_lm_head),
}
