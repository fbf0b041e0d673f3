"""Relations: what must stay the same when a call is changed in a way that cannot matter, or matters in a known way.

They need no oracle for the changed call, so they reach where none is affordable (thousands of rows) and see what no
comparison of numbers can (that a result depends on an address). A file of ``harness/relations`` names the ops that a
relation holds for. Two things keep it honest: a *witness* that the change moved something, without which a case says
nothing, and a *control*, a provider for which the relation breaks, which a test tries on every relation.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.judge import call, expected, on_device
from minimax_m2.harness.op import Op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of

Arguments = dict[str, Any]


class Exactness(Enum):
    """How equal two results must be: in every bit, or both within the error budget of the unchanged call."""

    BITS = "bits"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Change:
    """A changed call: its arguments, and how its outputs become comparable with the unchanged call's.

    ``undo(outputs, base)`` gets the changed call's outputs and the unchanged one's, and returns one tuple to compare
    with the latter, or several where a change holds the call more than once. A call that is split over ranks has the
    ``others``' arguments, and ``join`` makes one rank's outputs of all.
    """

    arguments: Arguments
    undo: Callable[[Outputs, Outputs], Outputs | list[Outputs]]
    others: tuple[Arguments, ...] = ()
    join: Callable[[list[Outputs]], Outputs] = lambda ranks: ranks[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation.

    name       what is done
    ops        the ops that it holds for
    transform  changes the arguments of a case, packed values before they are packed; None where it does not apply
    relocate   does the same to arguments that are packed already, for changes of memory rather than of values
    exactness  how equal the results must be
    demands    what the changed call's raw outputs must also show; a sentence where they do not
    """

    name: str
    ops: tuple[str, ...]
    transform: Callable[[Op, Case, Arguments], Change | None] | None = None
    relocate: Callable[[Op, Case, Arguments], Change | None] | None = None
    exactness: Exactness = Exactness.BUDGET
    demands: Callable[[Op, Case, Outputs], str] = lambda op, case, outputs: ""


class Standing(Enum):
    """What a case showed of a relation."""

    HOLDS = "holds"
    BROKEN = "broken"
    VACUOUS = "vacuous"
    DOES_NOT_APPLY = "does not apply"


@dataclass(frozen=True, slots=True)
class Finding:
    """One relation on one case."""

    standing: Standing
    evidence: str = ""


@lru_cache(maxsize=1)
def all_relations() -> dict[str, Relation]:
    """Every declared relation by name: the files of ``harness/relations`` hold ``RELATIONS``."""
    package = importlib.import_module("minimax_m2.harness.relations")
    found: dict[str, Relation] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.update({relation.name: relation for relation in module.RELATIONS})
    return found


def relations_of(op: str) -> Iterator[Relation]:
    """The relations that hold for an op."""
    yield from (relation for relation in all_relations().values() if op in relation.ops)


def relate(
    relation: Relation, op: Op, case: Case, provider: Provider, variant: str = "", exactness: Exactness | None = None
) -> Finding:
    """Call a provider on a case and on its change, and compare. What a provider raises is evidence, too.

    ``exactness`` asks a provider that promises more than the relation for more.
    """
    if provider.refuses(op, case) is not None:
        return Finding(Standing.DOES_NOT_APPLY)
    raw = op.inputs(case, Bits(case))
    change = relation.transform(op, case, raw) if relation.transform is not None else None
    if relation.transform is not None and change is None:
        return Finding(Standing.DOES_NOT_APPLY)
    before = placed(raw, provider)
    if relation.relocate is not None:
        change = relation.relocate(op, case, placed(op.inputs(case, Bits(case)), provider))
    if change is None:
        return Finding(Standing.DOES_NOT_APPLY)
    after = placed(change.arguments, provider)
    if not moved(before, after):
        return Finding(Standing.VACUOUS, "the change moved nothing")
    try:
        with provider.enter(variant):
            base = given_by(provider, op, before)
            ranks = [after, *(placed(other, provider) for other in change.others)]
            changed = change.join([given_by(provider, op, rank) for rank in ranks])
    except (Exception, SystemExit) as error:
        return Finding(Standing.BROKEN, f"raised {type(error).__name__}: {error}")
    demanded = relation.demands(op, case, changed)
    if demanded:
        return Finding(Standing.BROKEN, demanded)
    undone = change.undo(changed, base)
    for copy in undone if isinstance(undone, list) else [undone]:
        told = _difference(exactness or relation.exactness, op, case, provider, copy, base)
        if told:
            return Finding(Standing.BROKEN, told)
    return Finding(Standing.HOLDS)


def given_by(provider: Provider, op: Op, arguments: Arguments) -> Outputs:
    """What a provider returns for arguments that are placed, then what it wrote, as copies on the host."""
    outputs = outputs_of(op, call(op, provider.function(op.name), arguments), arguments)
    # Copied at once: a provider may return the same memory again.
    return tuple(output.detach().cpu().clone() for output in outputs)


def _difference(exactness: Exactness, op: Op, case: Case, provider: Provider, got: Outputs, base: Outputs) -> str:
    """Say how two results differ; nothing where they do not."""
    for name, a, b in zip(op.outputs, got, base, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {a.dtype} {list(a.shape)}, unchanged {b.dtype} {list(b.shape)}"
        if exactness is Exactness.BITS and not torch.equal(_bytes(a), _bytes(b)):
            differing = (_bytes(a) != _bytes(b)).flatten().nonzero()
            return f"{name} has other bits, first in byte {int(differing[0])}"
    if exactness is Exactness.BITS:
        return ""
    right, _ = expected(op, case, provider.contract.get(op.name, {}))
    failed = [c.output for c in right.judge(got) if not c.passed]
    return f"{', '.join(failed)} leaves the budget of the unchanged call" if failed else ""


def placed(arguments: Mapping[str, Any], provider: Provider) -> Arguments:
    """Pack what the provider packs and bring tensors to its device, strides kept."""
    return {name: on_device(value, provider) for name, value in arguments.items()}


def moved(before: Arguments, after: Arguments) -> bool:
    """Whether any tensor argument has other values, another dtype, shape, address or strides."""
    return any(_differs(before.get(name), value) for name, value in after.items())


def _differs(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return any(_differs(x, y) for x, y in zip(a, b, strict=False))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is not b and a != b
    if a.shape != b.shape or a.dtype != b.dtype or a.stride() != b.stride():
        return True
    # The two calls' arguments are drawn apart, so addresses differ anyway: what counts is their alignment.
    return a.data_ptr() % 128 != b.data_ptr() % 128 or not torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    # A dimension of one may have any stride, even in a contiguous tensor.
    return x.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
