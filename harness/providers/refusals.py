"""What an engine's kernels cannot express, as a table of case fields: said case by case, never passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Op
from minimax_m2.harness.sampling import sampled


@dataclass(frozen=True, slots=True)
class Refusals:
    """``refuses(op, case)`` of a provider.

    engine  its name in the message
    can     the values it can express, by op and case field; a field left out is free
    sizes   by op, why a case's sizes are refused, or None
    fits    by op, sizes that are not, where hardly a drawn case has such
    """

    engine: str
    can: Mapping[str, Mapping[str, tuple[Field, ...]]]
    sizes: Mapping[str, Callable[[Case], str | None]] = field(default_factory=dict)
    fits: Mapping[str, Mapping[str, tuple[Field, ...]]] = field(default_factory=dict)

    def __call__(self, op: Op, case: Case) -> str | None:
        for name, values in self.can.get(op.name, {}).items():
            if name in case and case[name] not in values:
                return f"{self.engine} has no {op.name} with {name}={case[name]}"
        return self.sizes[op.name](case) if op.name in self.sizes else None

    def fitting(self, op: Op, wanted: int) -> Iterator[Case]:
        """``wanted`` sampled cases, each moved to values that the engine can express."""
        can = self.can.get(op.name, {})
        found = 0
        for i in count():
            for case in sampled(op, 1, start=i):
                moved = {name: values[i % len(values)] for name, values in can.items() if case[name] not in values}
                moved |= {name: values[i % len(values)] for name, values in self.fits.get(op.name, {}).items()}
                settled = op.settle({name: value for name, value in case.but(**moved).items() if name != "op"})
                fit = None if settled is None else Case({"op": op.name, **settled})
                if fit is not None and self(op, fit) is None:
                    yield fit
                    found += 1
            if found == wanted:
                return
