"""Generic mutants: the plain provider of an op with one thing done wrong to an argument or an output.

An operator knows nothing of the op. It applies where its argument or output can show it in some sampled case, and makes
a function that offers the op; everything else about that function is right. Defects are made here, in a provider's
function, never inside a judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.expectation import is_quantised
from minimax_m2.harness.judge import call
from minimax_m2.harness.op import Op, Pack, all_ops
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.plain import function_of
from minimax_m2.harness.sampling import sampled

Change = Callable[[Any], Any]
SEEN = 12
"""Sampled cases that say what an argument can be."""

# Mutants that compute the same function: what they change, and why nobody can tell.
EQUIVALENT = {
    "attention: block_table without the mask of -1": "entries behind a sequence's pages are never read",
    "pack_routing: weights in bfloat16": "the packed word holds bfloat16",
    "qk_sum_squares: qkv without its last column": "the last columns are v, which is not summed",
    "unpack_routing: weights in bfloat16": "the packed word holds bfloat16",
    "add_rms_norm: x and residual exchanged": "a sum does not tell its terms apart",
    "add_rms_norm_quant: x and residual exchanged": "a sum does not tell its terms apart",
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong provider: ``slots: 1 more`` of kv_cache. ``packs`` are packing functions that are wrong."""

    op: Op
    defect: str
    function: Callable[..., Any]
    packs: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op.name}: {self.defect}"

    def provider(self) -> Provider:
        """The mutant beside the packing functions that its op needs."""
        packs = {f"pack_{name}": function_of(f"pack_{name}") for name in all_ops()}
        found = {name: pack for name, pack in packs.items() if pack is not None and name != self.op.name}
        return from_object(SimpleNamespace(**{**found, **self.packs, self.op.name: self.function}), name="mutant")


def mutants(op: Op) -> Iterator[Mutant]:
    """Every mutant of an op that is not known to be equivalent."""
    found = [*_of_arguments(op), *_of_packs(op), *_of_pairs(op), *_of_outputs(op)]
    yield from (mutant for mutant in found if mutant.name not in EQUIVALENT)


def _of_arguments(op: Op) -> Iterator[Mutant]:
    for name, values in _examples(op).items():
        for defect, applies, change in ARGUMENT_OPERATORS:
            if any(applies(value) for value in values):
                yield Mutant(op, f"{name} {defect}", _changing_argument(op, name, change))
        # A packed routing has its weights in the ids, so no weights are no defect there.
        if any(v is None for v in values) and any(v is not None for v in values) and (op.name, name) not in PACKED:
            yield Mutant(op, f"{name} dropped", _changing_argument(op, name, lambda value: None))


PACKED = (("experts", "weights"),)
SINGLE = (("moe_align", "num_padded"),)


def _examples(op: Op) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for case in sampled(op, SEEN):
        for name, value in op.inputs(case, Bits(case)).items():
            if not isinstance(value, Pack):
                found.setdefault(name, []).append(value)
    return found


def _changing_argument(op: Op, name: str, change: Change) -> Callable[..., Any]:
    def mutated(given: dict[str, Any]) -> Any:
        value = given.get(name)
        return _run(op, given if value is None else given | {name: change(value)})

    return _named(op, mutated)


def _of_packs(op: Op) -> Iterator[Mutant]:
    """What goes wrong at load."""
    found: dict[tuple[str, str], list[Any]] = {}
    for case in sampled(op, SEEN):
        for pack in (v for v in op.inputs(case, Bits(case)).values() if isinstance(v, Pack)):
            for name, value in pack.arguments.items():
                found.setdefault((pack.function, name), []).append(value)
    plain = function_of(op.name)
    for (pack_name, name), values in found.items():
        for defect, applies, change in ARGUMENT_OPERATORS:
            if plain is not None and any(applies(value) for value in values):
                packs = {pack_name: _changing_pack(pack_name, name, change)}
                yield Mutant(op, f"{name} {defect}", plain, packs)


def _changing_pack(pack_name: str, name: str, change: Change) -> Callable[..., Any]:
    pack = function_of(pack_name)
    if pack is None:
        raise ValueError(f"the plain provider does not offer {pack_name}")

    def mutated(*positional: Any, **given: Any) -> Any:
        named = dict(zip(signature(pack).parameters, positional, strict=False)) | given
        value = named.get(name)
        return pack(**(named if value is None else named | {name: change(value)}))

    return mutated


def _of_pairs(op: Op) -> Iterator[Mutant]:
    examples = _examples(op)
    for first, second in zip(examples, list(examples)[1:], strict=False):
        pairs = zip(examples[first], examples[second], strict=False)
        if any(_exchangeable(a, b) for a, b in pairs):
            yield Mutant(op, f"{first} and {second} exchanged", _exchanging(op, first, second))


def _exchangeable(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.numel() > 1
    return isinstance(a, float) and isinstance(b, float)


def _exchanging(op: Op, first: str, second: str) -> Callable[..., Any]:
    def mutated(given: dict[str, Any]) -> Any:
        a, b = given.get(first), given.get(second)
        return _run(op, given | {first: b, second: a} if _exchangeable(a, b) else given)

    return _named(op, mutated)


def _of_outputs(op: Op) -> Iterator[Mutant]:
    for position, (name, kind) in enumerate(op.outputs.items()):
        for defect, applies, make in OUTPUT_OPERATORS:
            # What is written in place keeps its dtype, and a single number has no rows.
            in_place = name in op.mutates and defect == "in float64"
            single = (op.name, name) in SINGLE and ("row" in defect or "tile" in defect)
            if applies(_dtype(op, kind)) and not in_place and not single:
                yield Mutant(op, f"{name} {defect}", _changing_output(op, position, make()))


def _dtype(op: Op, kind: str) -> str:
    """The simplest dtype of an output: a case field names it, or names the model's."""
    first = str(op.factors[kind][0]) if kind in op.factors else kind
    return first if isinstance(getattr(torch, first, None), torch.dtype) else str(op.factors["dtype"][0])


def _changing_output(op: Op, position: int, change: Change) -> Callable[..., Any]:
    returned_names = [name for name in op.outputs if name not in op.mutates]

    def mutated(given: dict[str, Any]) -> Any:
        returned = _run(op, given)
        if position >= len(returned_names):
            cache = given[list(op.outputs)[position]]
            cache.copy_(change(cache.clone()))
            return returned
        if not isinstance(returned, tuple):
            return change(returned)
        return (*returned[:position], change(returned[position]), *returned[position + 1 :])

    return _named(op, mutated)


def _named(op: Op, mutated: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    names = op.positional()

    def function(*positional: Any, **keywords: Any) -> Any:
        return mutated(dict(zip(names, positional, strict=False)) | keywords)

    function.__name__ = op.name
    return function


def _run(op: Op, given: dict[str, Any]) -> Any:
    plain = function_of(op.name)
    if plain is None:
        raise ValueError(f"the plain provider does not offer {op.name}")
    return call(op, plain, given)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1


def _is_integer(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.numel() > 1


def _later_row(x: Tensor) -> Tensor:
    # float8 has no roll, so move the bytes of its rows.
    return x[torch.arange(len(x)).roll(-1)] if len(x) > 1 else x


def _one_more(x: Tensor) -> Tensor:
    """Every number but the largest, so that what is addressed is still there."""
    return torch.where(x < x.max(), x + 1, x) if x.numel() else x


def _halves_exchanged(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]], -1)


def _last_column_cleared(x: Tensor) -> Tensor:
    return x * (torch.arange(x.shape[-1]) < x.shape[-1] - 1) if x.itemsize > 1 else x


def _dense(x: Tensor) -> Tensor:
    strides = [1]
    for size in reversed(x.shape[1:]):
        strides.insert(0, strides[0] * size)
    return x.as_strided(x.shape, strides)


def _as_words(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)[..., : x.shape[-1]]


ARGUMENT_OPERATORS: tuple[tuple[str, Callable[[Any], bool], Change], ...] = (
    ("a row off", lambda v: (_is_float(v) or _is_integer(v)) and len(v) > 1, _later_row),
    ("halves exchanged", lambda v: _is_float(v) and v.shape[-1] > 1, _halves_exchanged),
    ("without its last column", lambda v: _is_float(v) and v.itemsize > 1, _last_column_cleared),
    ("read densely", lambda v: _is_float(v) and not v.is_contiguous() and v.shape[0] > 1, _dense),
    ("in bfloat16", lambda v: _is_float(v) and v.dtype == torch.float32, lambda v: v.bfloat16().to(v.dtype)),
    ("1 more", _is_integer, _one_more),
    ("without the mask of -1", lambda v: _is_integer(v) and bool((v < 0).any()), lambda v: v.clamp(min=0)),
    ("read as 32-bit words", lambda v: _is_integer(v) and v.dtype == torch.int64 and v.ndim > 1,
     lambda v: _as_words(v) if v.dtype == torch.int64 else v),
    ("ignored", lambda v: isinstance(v, bool), lambda v: not v),
    ("taken for 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, lambda v: 0),
    ("taken for 1", lambda v: isinstance(v, float) and v not in (0.0, 1.0), lambda v: 1.0),
)  # fmt: skip


def _row_skipped(y: Tensor) -> Tensor:
    y = y.clone()
    y[-1:] = 0
    return y


def _column_skipped(y: Tensor) -> Tensor:
    y = y.clone()
    y[..., -1:] = 0
    return y


def _tile_repeated(y: Tensor) -> Tensor:
    wide = min(16, y.shape[-1] // 2)
    y = y.clone()
    y[..., wide : 2 * wide] = y[..., :wide].clone()
    return y


def _element_moved(y: Tensor) -> Tensor:
    flat = y.flatten().clone()
    flat[flat.numel() // 2 :][:1] += 1
    return flat.view(y.shape)


def _last_digit_cleared(y: Tensor) -> Tensor:
    """Half the precision of a 16-bit format, and always towards zero; wider formats keep theirs."""
    return (y.contiguous().view(torch.int16) & -2).view(y.dtype) if y.itemsize == 2 else y


class _Stale:
    """A buffer of one row that is written too late: each call's last row is what the call before left."""

    def __init__(self) -> None:
        self.left = torch.zeros(0)

    def __call__(self, y: Tensor) -> Tensor:
        if y.ndim == 0 or y.numel() == 0:
            return y
        last = y[-1].flatten()
        found = torch.zeros(last.numel(), dtype=torch.float64)
        found[: self.left.numel()] = self.left[: last.numel()]
        self.left = last.double()
        return torch.cat([y[:-1], found.to(y.dtype).view(y[-1:].shape)])


def _always(kind: str) -> bool:
    return True


def _floating(kind: str) -> bool:
    return not is_quantised(getattr(torch, kind))


def _narrow(kind: str) -> bool:
    return kind in ("bfloat16", "float16")


OUTPUT_OPERATORS: tuple[tuple[str, Callable[[str], bool], Callable[[], Change]], ...] = (
    ("without its last row", _always, lambda: _row_skipped),
    ("without its last column", _always, lambda: _column_skipped),
    ("a row off", _always, lambda: _later_row),
    ("with a tile repeated", _always, lambda: _tile_repeated),
    ("with a stale row", _always, _Stale),
    ("1 % too large", _floating, lambda: lambda y: (y.double() * 1.01).to(y.dtype)),
    ("0.2 % too large", _floating, lambda: lambda y: (y.double() * 1.002).to(y.dtype)),
    ("with its last digit cleared", _narrow, lambda: _last_digit_cleared),
    ("negated", _floating, lambda: lambda y: -y),
    ("doubled", _floating, lambda: lambda y: y + y),
    ("in bfloat16", lambda kind: kind == "float32", lambda: lambda y: y.bfloat16().to(y.dtype)),
    ("1 off in the middle", lambda kind: "int" in kind, lambda: _element_moved),
    ("in float64", _always, lambda: lambda y: y.double()),
)
