"""What cases cover of an op's declared factors: their values, pairs of values, and the pairs that never met.

A pair that no case can hold (``K <= E`` lowers K) counts as declared all the same, so no op reaches all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Op

Value = tuple[str, Field]
Pair = tuple[Value, Value]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Pairs of values of two factors that met in some case, of all that are declared.

    absent  values that no case has
    never   pairs whose values both occur, but never in one case
    """

    op: str
    cases: int
    factors: dict[str, int]
    met: int
    declared: int
    absent: tuple[Value, ...]
    never: tuple[Pair, ...]

    @property
    def share(self) -> float:
        return self.met / self.declared if self.declared else 1.0


def coverage(op: Op, cases: Iterable[Case]) -> Coverage:
    """Count what cases cover, as they were settled."""
    drawn, factors = list(cases), op.factors
    seen = {(name, case[name]) for case in drawn for name in factors if name in case}
    met = {pair for case in drawn for pair in _pairs(case, factors)}
    every = {
        ((a, x), (b, y)) for (a, xs), (b, ys) in combinations(factors.items(), 2) for x in xs for y in ys
    }  # fmt: skip
    absent = [(name, value) for name, values in factors.items() for value in values if (name, value) not in seen]
    never = sorted((p for p in every - met if p[0] in seen and p[1] in seen), key=str)
    sizes = {name: len(values) for name, values in factors.items()}
    return Coverage(op.name, len(drawn), sizes, len(every & met), len(every), tuple(absent), tuple(never))


def _pairs(case: Case, factors: Iterable[str]) -> Iterable[Pair]:
    held = [(name, case[name]) for name in factors if name in case]
    return combinations(held, 2)
