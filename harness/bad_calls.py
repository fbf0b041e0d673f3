"""Calls that no kernel may answer: each raises ``ValueError`` or ``TypeError``, names an argument and writes nothing.

Each is a case with one argument changed so that it breaks a rule of every op: tensors have the dtypes and axes that the
op says, their last dimension is contiguous, sizes agree, and what an index names exists. A call whose sizes disagree is
bad where the reference itself cannot run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import call_reference
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import given_by, placed
from minimax_m2.reference.contract import EXACT


def _experts(given: dict[str, Any]) -> int:
    """One too many for ids; packed ids are the upper halves of words."""
    known = given["expert_map"]
    count = len(given["packed"].arguments["w13"]) if known is None else len(known)
    return count << 16 if given["weights"] is None else count


def _aligned(given: dict[str, Any]) -> int:
    return int(given["num_experts"]) if given["expert_map"] is None else len(given["expert_map"])


def _slots(given: dict[str, Any]) -> int:
    return given["k_cache"].shape[0] * given["k_cache"].shape[1]


def _positions(given: dict[str, Any]) -> int:
    return len(given["cos_sin"])


# Arguments of which an index outside what it names is an error that the CPU tells, with the first such index; elsewhere
# it must be memory-safe.
INDEXING: dict[str, dict[str, Callable[[dict[str, Any]], int]]] = {
    "attention": {"block_table": lambda given: len(given["k_cache"])},
    "experts": {"ids": _experts, "expert_map": lambda given: len(given["packed"].arguments["w13"])},
    "kv_cache": {"slots": _slots},
    "lm_head": {"rows": lambda given: len(given["x"])},
    "moe_align": {"ids": _aligned, "expert_map": lambda given: int(given["num_experts"])},
    "qk_norm_rope": {"positions": _positions},
    "qk_norm_rope_cache": {"positions": _positions, "slots": _slots},
    "rope": {"positions": _positions},
    "gated_delta_rule": {"state_index": lambda given: len(given["state"])},
    "gdn_update": {"state_index": lambda given: len(given["state"])},
}
# What is behind a sequence's pages is no index, so the last entry of a block table may be any number.
ALL_IN_USE = ("positions", "slots", "rows", "ids", "state_index")
# What torch and the reference raise where sizes disagree. Anything else is a fault of ours and comes out.
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError)
# Cases that every bad call is made of.
CALLED_BADLY = 2
GAVE_NUMBERS = "gave numbers"
FAR = 2**28
"""More experts, pages, positions, slots or tokens than any case has; times any stride still no int64 overflow."""


@dataclass(frozen=True, slots=True)
class BadCall:
    """One argument of a case, what is wrong with it, and the arguments to call with."""

    argument: str
    defect: str
    arguments: dict[str, Any]

    @property
    def told_by_data(self) -> bool:
        """Whether only the values of indices show it: a map is too short where an id asks for what it lacks."""
        return " index " in self.defect or (self.argument, self.defect) == ("expert_map", "a column too few")


def bad_calls(op: Op, case: Case) -> Iterator[BadCall]:
    """Every bad call made of a case; arguments of packed values are left to the packing functions' own tests."""
    for name, value in op.inputs(case, Bits(case)).items():
        # A tensor without axes is a number, which some take as any that torch can read.
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        for defect, applies, change in DEFECTS:
            if applies(value):
                yield BadCall(name, defect, _changed(op, case, name, change))
        if value.numel() and _reference_refuses(op, case, name, _narrower):
            yield BadCall(name, "a column too few", _changed(op, case, name, _narrower))
        yield from _bad_indices(op, case, name, value)


def bad_calls_of(op: Op, drawn: Sequence[Case]) -> Iterator[BadCall]:
    """Those of the first ``CALLED_BADLY`` cases, and of later ones those of indices that none before them reads."""
    met = set[str]()
    for bad in (bad for case in drawn[:CALLED_BADLY] for bad in bad_calls(op, case)):
        met |= {bad.argument} if " index " in bad.defect else set()
        yield bad
    for case in drawn[CALLED_BADLY:]:
        for name in [n for n in INDEXING.get(op.name, ()) if n not in met]:
            found = list(_bad_indices(op, case, name, op.inputs(case, Bits(case))[name]))
            met |= {bad.argument for bad in found}
            yield from found


def answered(bad: BadCall, op: Op, provider: Provider, variant: str = "") -> str:
    """Say how a provider failed to refuse a bad call; nothing where it did, naming an argument, and wrote nothing."""
    arguments = placed(bad.arguments, provider)
    before = {name: arguments[name].clone() for name in op.mutates}
    try:
        with provider.enter(variant):
            given_by(provider, op, arguments)
    except (TypeError, ValueError) as error:
        # Where two disagree either may be named.
        if not any(name in str(error) for name in arguments):
            return f"{bad.argument} {bad.defect}: refused without the name of an argument: {error}"
        written = [name for name, old in before.items() if not torch.equal(_codes(arguments[name]), _codes(old))]
        return f"{bad.argument} {bad.defect}: refused, but {written[0]} was written" if written else ""
    # Whatever a provider raises instead is what is told.
    except Exception as error:
        return f"{bad.argument} {bad.defect}: {type(error).__name__}, expected ValueError or TypeError: {error}"
    return f"{bad.argument} {bad.defect}: {GAVE_NUMBERS}"


def answered_by_launches(op: Op, provider: Provider, drawn: Sequence[Case]) -> Iterator[str]:
    """How kernels that are launched to a device fail to refuse bad calls.

    What only the data tells may give numbers: no launch waits for it. It must be memory-safe.
    """
    for bad in bad_calls_of(op, drawn):
        told = answered(bad, op, provider)
        if told and not (bad.told_by_data and told.endswith(GAVE_NUMBERS)):
            yield told


def _changed(op: Op, case: Case, name: str, change: Callable[[Tensor], Any]) -> dict[str, Any]:
    given = op.inputs(case, Bits(case))
    return given | {name: change(given[name])}


def _reference_refuses(op: Op, case: Case, name: str, change: Callable[[Tensor], Any]) -> bool:
    given = {n: _unpacked(op, v) for n, v in _changed(op, case, name, change).items()}
    try:
        call_reference(op, given, EXACT)
    except REFUSALS:
        return True
    return False


def _unpacked(op: Op, value: Any) -> Any:
    if isinstance(value, Pack):
        return getattr(op.module, value.function)(**{k: _unpacked(op, v) for k, v in value.arguments.items()})
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value


def _narrower(x: Tensor) -> Tensor:
    return x[..., :-1].clone(memory_format=torch.contiguous_format)


def _bad_indices(op: Op, case: Case, name: str, value: Any) -> Iterator[BadCall]:
    if name in INDEXING.get(op.name, ()) and value is not None and value.numel():
        for defect, place, index in _outside(op, case, name):
            yield BadCall(name, defect, _changed(op, case, name, partial(_placed_at, place=place, index=index)))


def _outside(op: Op, case: Case, name: str) -> Iterator[tuple[str, int, int]]:
    """What is wrong with an index, where it stands, and the index."""
    given = op.inputs(case, Bits(case))
    first, place = INDEXING[op.name][name](given), _in_use(given, name)
    if place is None:
        return
    yield "an index far out", place, FAR
    yield "an index one too far", place, first
    if name in ALL_IN_USE:
        yield "a last index one too far", -1, first
    if name == "positions":
        yield "an index below 0", 0, -1


def _in_use(given: dict[str, Any], name: str) -> int | None:
    """Where an index stands that the call reads: the first, or in a map that of the first id; None: nowhere."""
    if name != "expert_map":
        return 0
    ids = given["ids"] if given.get("weights", given["ids"]) is not None else given["ids"] >> 16
    used = ids[ids >= 0]
    return int(used[0]) if len(used) else None


def _placed_at(x: Tensor, *, place: int, index: int) -> Tensor:
    flat = x.reshape(-1).clone()
    flat[place] = index
    return flat.view(x.shape)


def _spread(x: Tensor) -> Tensor:
    store = torch.zeros((*x.shape, 2)).to(x.dtype)
    store[..., 0] = x
    return store[..., 0]


def _codes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8) if x.numel() else x


def _is_wide(x: Tensor) -> bool:
    return x.is_floating_point() and x.itemsize > 1


DEFECTS: tuple[tuple[str, Callable[[Tensor], bool], Callable[[Tensor], Any]], ...] = (
    ("in float64", _is_wide, lambda x: x.double()),
    ("in int16", lambda x: not x.is_floating_point(), lambda x: x.to(torch.int16)),
    ("with an axis more", lambda x: True, lambda x: x[None]),
    ("every other column", lambda x: x.ndim > 1 and x.shape[-1] > 1 and x.numel() > 0, _spread),
)
