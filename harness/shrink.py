"""Make a failing case small: its recipe, then its experts and tokens, then the values in its tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase, choices_to_bytes
from hypothesis.errors import NoSuchExample
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Op, Pack

KEY = b"shrink"
# A size that no op can build, or a value that it cannot take, is no smaller failure.
CANNOT_BE_BUILT = (ValueError, TypeError, IndexError, KeyError, RuntimeError, ZeroDivisionError)


def shrunk(op: Op, case: Case, fails: Callable[[Case], bool], *, seconds: float = 30.0) -> Case:
    """The smallest case found in ``seconds`` that still fails; the case itself where none is smaller.

    Hypothesis shrinks the fields towards the first of what the op draws; then experts and tokens
    become fewer.
    """
    until, tried = time.monotonic() + seconds, dict[Case, bool]()

    def still(candidate: Case | None) -> bool:
        if candidate is None:
            return False
        if candidate not in tried:
            if time.monotonic() > until:
                return False
            try:
                tried[candidate] = fails(candidate)
            except CANNOT_BE_BUILT:
                tried[candidate] = False
        return tried[candidate]

    best = _by_hypothesis(op, case, still)
    lowered = True
    while lowered:
        lowered = False
        for candidate in _smaller(op, best):
            if candidate is not None and still(candidate):
                best, lowered = candidate, True
                break
    return best


def _by_hypothesis(op: Op, case: Case, still: Callable[[Case | None], bool]) -> Case:
    """Hypothesis' own shrinking, begun at this case."""
    # What the op settled a field to may be none of the values that it draws.
    values = {name: tuple(dict.fromkeys((*drawn, case[name]))) for name, drawn in op.factors.items()}
    places = [drawn.index(case[name]) for name, drawn in values.items()]
    drawn = st.fixed_dictionaries(
        {
            **{name: st.sampled_from(v) for name, v in values.items()},
            "seed": st.integers(0, max(1, case.number("seed"))),
        }
    )
    database = InMemoryExampleDatabase()
    database.save(KEY, choices_to_bytes((*places, case.number("seed"))))
    try:
        found = find(
            drawn,
            lambda fields: still(_settled(op, fields)),
            settings=settings(
                database=database, phases=(Phase.reuse, Phase.shrink), max_examples=1000, deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
            database_key=KEY,
        )  # fmt: skip
    except NoSuchExample:
        return case
    return _settled(op, found) or case


def _settled(op: Op, fields: dict[str, Field]) -> Case | None:
    settled = op.settle(dict(fields))
    return None if settled is None else Case({"op": op.name, **settled})


def _smaller(op: Op, case: Case) -> Iterator[Case | None]:
    """The case with fewer experts or tokens, the fewest first; other sizes stay what the op draws."""
    for name in ("E", "K", "T"):
        if name not in op.factors:
            continue
        size = case.number(name)
        for less in sorted({1, 2, 3, size // 4, size // 2, size - size // 4, size - 1}):
            if 1 <= less < size:
                yield _settled(op, {k: v for k, v in case.but(**{name: less}).items() if k != "op"})


def simpler_values(
    arguments: dict[str, Any], fails: Callable[[dict[str, Any]], bool], *, seconds: float = 20.0
) -> dict[str, Any]:
    """Arguments that still fail, with as many zeros and ones in their floating tensors as were found in ``seconds``."""
    until = time.monotonic() + seconds
    for path, value in list(_floating(arguments)):
        for simple in (torch.zeros_like(value), torch.ones_like(value)):
            changed = _with(arguments, path, simple)
            if time.monotonic() < until and _still(fails, changed):
                arguments = changed
                break
        else:
            arguments = _fewer(arguments, path, value, fails, until)
    return arguments


def _fewer(
    arguments: dict[str, Any],
    path: tuple[str, ...],
    value: Tensor,
    fails: Callable[[dict[str, Any]], bool],
    until: float,
) -> dict[str, Any]:
    """Zero runs of elements, long ones first, where the failure stays."""
    run = value.numel() // 2
    while run >= 1 and time.monotonic() < until:
        for start in range(0, value.numel(), run):
            if time.monotonic() > until:
                break
            fewer = value.clone()
            flat = fewer.reshape(-1)
            flat[start : start + run] = 0
            changed = _with(arguments, path, flat.view(value.shape))
            if bool((flat != value.reshape(-1)).any()) and _still(fails, changed):
                arguments, value = changed, flat.view(value.shape)
        run //= 2
    return arguments


def _still(fails: Callable[[dict[str, Any]], bool], arguments: dict[str, Any]) -> bool:
    try:
        return fails(arguments)
    except CANNOT_BE_BUILT:
        return False


def _floating(arguments: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Floating tensors, made contiguous, with where they stand, those of packed arguments too."""
    for name, value in arguments.items():
        if isinstance(value, Pack):
            yield from (((name, *path), v) for path, v in _floating(value.arguments))
        elif isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            yield (name,), value.contiguous()


def _with(arguments: dict[str, Any], path: tuple[str, ...], value: Tensor) -> dict[str, Any]:
    name, *rest = path
    if not rest:
        return arguments | {name: value}
    pack: Pack = arguments[name]
    return arguments | {name: pack._replace(arguments=_with(pack.arguments, tuple(rest), value))}


def given(op: Op, arguments: dict[str, Any]) -> Op:
    """The op with these arguments for every case."""
    return replace(op, inputs=lambda case, bits: arguments)
