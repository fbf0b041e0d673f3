"""Draw cases: a fixed, reproducible sample for runs, and a Hypothesis strategy for tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import strategies as st

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Op


def sampled(op: Op, count: int, *, start: int = 0) -> list[Case]:
    """``count`` draws that any machine makes alike, less those that the op's ``settle`` refuses.

    Every value of every factor is drawn once the count allows it; ``settle`` may still change what a case becomes.
    Case ``i`` takes each factor's value from a shuffled deck of all its values, dealt anew when it is empty.
    """
    decks = {name: _dealt(name, len(values), start + count) for name, values in op.factors.items()}
    found: list[Case] = []
    for i in range(start, start + count):
        fields: dict[str, Field] = {name: op.factors[name][decks[name][i]] for name in op.factors}
        settled = op.settle(fields | {"seed": i})
        if settled is not None:
            found.append(Case({"op": op.name, **settled}))
    return found


def small_first(op: Op, drawn: Iterable[Case]) -> list[Case]:
    """Cases by what they cost, those without tokens last: a wrong kernel is told soon, and its first call is small."""

    def effort(case: Case) -> tuple[bool, int]:
        cost = op.cost(case)
        return 0 in (case.get("T"), case.get("B")), cost.bytes + cost.flops

    return sorted(drawn, key=effort)


def _dealt(name: str, size: int, count: int) -> list[int]:
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(name.encode()[:8].ljust(8), "little")))
    rounds = -(-count // size) if size else 0
    return [int(i) for _ in range(rounds) for i in generator.permutation(size)][:count]


def cases(op: Op, **fixed: Field) -> st.SearchStrategy[Case]:
    """Hypothesis strategy over an op's cases; it shrinks towards each factor's first value. ``fixed`` holds fields."""
    unknown = sorted(set(fixed) - set(op.factors))
    if unknown:
        raise ValueError(f"op {op.name} has no factor {unknown[0]!r}; it has {', '.join(op.factors)}")
    fields = {
        name: st.just(fixed[name]) if name in fixed else st.sampled_from(values) for name, values in op.factors.items()
    }
    seeds = {"seed": st.integers(0, 2**32 - 1)}
    drawn = st.fixed_dictionaries({**fields, **seeds}).map(op.settle).filter(lambda settled: settled is not None)
    return drawn.map(lambda settled: Case({"op": op.name, **(settled or {})}))
