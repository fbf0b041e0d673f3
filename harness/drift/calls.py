"""Taps: a table of ops whose every entry shows its call before it answers.

The one model calls each step through its table, so a table is all that a tap needs: the model runs unchanged, and
where no tap stands nothing is paid for one. A call holds its arguments as a case's inputs do, packed weights still
apart, so that whoever judges cases can judge it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Op, Pack, all_ops, find_op
from minimax_m2.reference.table import STEPS, OpTable, op_table
from minimax_m2.reference.weights import BlockQuantized, LayerWeights

EMBEDDING = -1
"""The layer that stands for what comes before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One step of one layer as the model calls it.

    step       where it stands: ``qkv`` and ``o_proj`` are both calls of ``linear``
    arguments  by the reference's parameter names; caches as they were before the call
    phase      ``prefill`` or ``decode``
    """

    layer: int
    step: str
    op: Op
    arguments: dict[str, Any]
    phase: str = "prefill"

    @property
    def place(self) -> tuple[int, str]:
        return self.layer, self.step


Watch = Callable[[Call], Any]
"""Takes a call and returns what the step gives to the model; written arguments are written by it."""


def tapped(watch: Watch, *, layer: int, roles: Mapping[int, str], offered: Collection[str] = ()) -> OpTable:
    """A table that hands every step to ``watch``.

    Of a coarse step whose parts alone are ``offered``, the parts are handed over and put together as ``op_table``
    composes them. ``roles`` names steps by the address of their weight.
    """
    stands = {op: _stand(op, watch, layer, roles) for op in STEPS if op in offered and op in all_ops()}
    table = op_table(stands)
    own: dict[str, Any] = {
        name: _stand(name, watch, layer, roles)
        for name, source in table.sources.items()
        if source == "reference" and name in all_ops() and name in OpTable.__dataclass_fields__
    }
    whole = {op: op in stands or op in own for op in ("fp8_linear", "experts")}
    packs: dict[str, Any] = {f"pack_{op}": _packing(f"pack_{op}") for op, kept in whole.items() if kept}
    return replace(table, **own, **packs)


def roles(layer: LayerWeights | None = None, *, norm: Tensor | None = None) -> dict[int, str]:
    """What the steps of a layer, or of the model beside its layers, are called, by the address of their weight."""
    named = {
        "input_norm": layer and layer.input_layernorm,
        "qkv": layer and layer.qkv_proj,
        "q_norm": layer and layer.q_norm,
        "k_norm": layer and layer.k_norm,
        "o_proj": layer and layer.o_proj,
        "post_attention_norm": layer and layer.post_attention_layernorm,
        "final_norm": norm,
    }
    return {_address(weight): step for step, weight in named.items() if weight is not None}


def _address(weight: Any) -> int:
    return (weight.weight if isinstance(weight, BlockQuantized) else weight).data_ptr()


def _stand(name: str, watch: Watch, layer: int, roles: Mapping[int, str]) -> Callable[..., Any]:
    op = find_op(name)

    def call(*positional: Any, **keywords: Any) -> Any:
        arguments = bound(op, positional, keywords)
        weight = arguments.get("weight")
        packed = arguments.get("packed")
        if isinstance(packed, Pack) and packed.function == "pack_fp8_linear":
            weight = packed.arguments["weight"]
        step = roles.get(weight.data_ptr(), name) if isinstance(weight, Tensor) else name
        return watch(Call(layer=layer, step=step, op=op, arguments=arguments))

    return call


def _packing(name: str) -> Callable[..., Pack]:
    parameters = tuple(inspect.signature(getattr(find_op(name.removeprefix("pack_")).module, name)).parameters)

    def pack(*positional: Any, **keywords: Any) -> Pack:
        return Pack(name, dict(zip(parameters, positional, strict=False)) | keywords)

    return pack


def bound(op: Op, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, with the defaults of those that every case of the op hands over."""
    found = inspect.signature(op.reference).bind(*positional, **keywords)
    given = dict(found.arguments)
    found.apply_defaults()
    return {name: v for name, v in found.arguments.items() if name in given or name in _always(op.name)}


@lru_cache(maxsize=64)
def _always(name: str) -> frozenset[str]:
    op = find_op(name)
    case = op.case()
    return frozenset(op.inputs(case, Bits(case)))


def kept(call: Call) -> Call:
    """The call with caches of its own: the model goes on to write to those that it was called with."""
    caches = {name: value.clone() for name, value in call.arguments.items() if name.endswith("_cache")}
    return replace(call, arguments=call.arguments | caches)


def only_active(call: Call) -> Call:
    """The call with the experts that some token chose, and no other; the same result from less memory."""
    a = call.arguments
    if call.op.name != "experts" or a.get("expert_map") is not None or a.get("weights") is None:
        return call
    ids: Tensor = a["ids"]
    active = ids[ids >= 0].long().unique()
    packed: Pack = a["packed"]
    chosen = {k: v[active] if isinstance(v, Tensor) else v for k, v in packed.arguments.items()}
    place = torch.full((int(active.max()) + 1 if len(active) else 1,), -1, dtype=ids.dtype)
    place[active] = torch.arange(len(active), dtype=ids.dtype)
    renamed = torch.where(ids >= 0, place[ids.long().clamp(min=0)], ids)
    return replace(call, arguments=a | {"packed": packed._replace(arguments=chosen), "ids": renamed})


def described(call: Call) -> Case:
    """The case that a call is one of: its sizes and dtypes; what it is drawn from takes the simplest value."""
    op, a = call.op, call.arguments
    found: dict[str, Field] = {name: values[0] for name, values in op.factors.items()}
    for name, read in _FIELDS.items():
        if name in found and (value := read(a)) is not None:
            found[name] = value
    # Of a norm "weights" says their dtype; elsewhere it is a scale, which cannot be read off.
    if "q_weight" in a and "weights" in found:
        found["weights"] = "model" if a["q_weight"].dtype == a["qkv"].dtype else "float32"
    return Case({"op": op.name, **found, "seed": 0})


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _lead(a: Mapping[str, Any]) -> Tensor:
    """The activations, or the weight of a look-up."""
    names = ("x", "qkv", "q", "k", "logits", "gate_up", "weight")
    return next(a[name] for name in names if isinstance(a.get(name), Tensor))


def _raw(a: Mapping[str, Any], name: str) -> Any:
    packed = a.get("packed")
    return packed.arguments.get(name) if isinstance(packed, Pack) else None


def _size(name: str, axis: int) -> Callable[[Mapping[str, Any]], int | None]:
    return lambda a: a[name].shape[axis] if isinstance(a.get(name), Tensor) else None


def _given(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda a: a.get(name)


def _first(*readers: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
    return lambda a: next((value for read in readers if (value := read(a)) is not None), None)


def _packed_size(name: str, axis: int) -> Callable[[Mapping[str, Any]], int | None]:
    return lambda a: None if _raw(a, name) is None else int(_raw(a, name).shape[axis])


def _ids(a: Mapping[str, Any]) -> str | None:
    if "indices_dtype" in a:
        return str(a["indices_dtype"]).removeprefix("torch.")
    found = a.get("ids", a.get("block_table"))
    return None if found is None else _dtype(found)


def _quant(weight: Tensor) -> str:
    return "int8" if weight.dtype == torch.int8 else "weights"


def _block(a: Mapping[str, Any]) -> int | None:
    block = _raw(a, "block")
    return None if block is None else int(block[1])


_FIELDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "T": lambda a: len(a["ids"]) if "vocab_start" in a else _lead(a).shape[0],
    "H": lambda a: _lead(a).shape[-1],
    "N": _first(_size("rows", 0), _packed_size("weight", 0), _size("weight", 0)),
    "V": _first(_given("vocab_size"), lambda a: a["weight"].shape[0] if "vocab_start" in a else None),
    "E": _first(_packed_size("w13", 0), lambda a: a["weight"].shape[0] if "weight" in a else a["logits"].shape[1]),
    "I": _packed_size("w2", 2),
    "K": _first(_given("top_k"), _size("ids", -1)),
    "active": lambda a: max(1, len(a["ids"][a["ids"] >= 0].unique())),
    "B": lambda a: len(a["seq_lens"]),
    "S": lambda a: int(a["seq_lens"].max()) if len(a["seq_lens"]) else 1,
    "page": lambda a: a["k_cache"].shape[1],
    "Hq": _first(_given("num_heads"), _size("q", 1)),
    "Hk": _first(_given("num_kv_heads"), _size("k_cache", 2), _size("k", 1)),
    "group": lambda a: a["q"].shape[1] // a["k_cache"].shape[2],
    "D": _first(_given("head_dim"), lambda a: _lead(a).shape[-1]),
    "R": _given("rotary_dim"),
    "dtype": lambda a: _dtype(_lead(a)),
    "out": lambda a: _dtype(_lead(a)) if a.get("out_dtype") is None else str(a["out_dtype"]).removeprefix("torch."),
    "cache": lambda a: _dtype(a["k_cache"]),
    "table": lambda a: _dtype(a["cos_sin"]),
    "positions": lambda a: _dtype(a["positions"]),
    "stats": lambda a: "none" if a.get("stats") is None else "others",
    "ids": _ids,
    "bias": lambda a: "none" if a.get("bias") is None else "small",
    "quant": lambda a: "none" if _raw(a, "w13_scale") is None else _quant(_raw(a, "w13")),
    "block": _block,
    "scoring": _given("scoring"),
    "renormalize": lambda a: int(a.get("renormalize", True)),
    "valid": lambda a: int(a.get("num_valid") is not None),
}


def columns(found: Collection[tuple[int, str]]) -> list[str]:
    """The steps of some places, in the order of a model's pass."""
    order = {step: place for place, step in enumerate(ORDER)}
    return sorted({step for _, step in found}, key=lambda step: order.get(step, len(order)))


ORDER = (
    *("embedding", "input_norm", "qkv", "q_norm", "k_norm", "qk_sum_squares", "rope", "qk_norm_rope"),
    *("kv_cache", "qk_norm_rope_cache", "attention", "o_proj", "post_attention_norm", "router_gemm", "routing"),
    *("router", "swiglu", "experts", "final_norm", "lm_head"),
)
"""Steps at every grain, as a pass meets them."""
