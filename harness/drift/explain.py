"""What a wrong tensor equals: the reference's with rows, columns or heads moved, its sign or its size changed.

A guess counts only where the judge accepts the output as the guess's own, within the budget moved along with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from minimax_m2.harness.budget import RULES, Budgeted
from minimax_m2.harness.compare import compare
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.guesses import Contracted, guessed
from minimax_m2.harness.expectation import Expectation, Outputs, Tensors

# Wider outputs are matched column by column only so far: the distances of all pairs take the square of it.
MOST_COLUMNS = 4096
SHOWN = 4


def explained(call: Call, contract: Contracted, right: Expectation, outputs: Outputs) -> str:
    """What the outputs of a call equal, or where they are wrong; empty where nothing can be said."""
    if isinstance(right, Tensors):
        for (name, expected), actual in zip(right.expected.items(), outputs, strict=True):
            if isinstance(expected, Budgeted) and not compare(name, actual, expected).passed:
                said = (
                    _moved(actual, expected)
                    or guessed(call, contract, right, outputs)
                    or _scaled(actual, expected)
                    or _where(actual, expected)
                )
                return f"{name} {said}" if said else ""
    return guessed(call, contract, right, outputs)


def _moved(actual: Tensor, expected: Budgeted) -> str:
    """The first movement of the reference that the output is within the budget of."""
    if not bool(torch.isfinite(actual).all()):
        return "holds numbers that are none" if bool(torch.isfinite(expected.value).all()) else ""
    if not bool(actual.any()) and bool(expected.value.any()):
        return "is zero throughout"
    flat = expected.moved(lambda t: t.reshape(t.shape[0], -1) if t.ndim > 1 else t[:, None])
    got = actual.reshape(flat.shape)
    for told, guess in _movements(got.double(), flat):
        if compare("", got, guess).passed:
            return told
    return ""


def _movements(got: Tensor, flat: Budgeted) -> Iterator[tuple[str, Budgeted]]:
    yield "equals the reference with the sign changed", -flat
    value = flat.value.nan_to_num()
    rows = _matched(got, value)
    if rows is not None:
        yield f"equals the reference after {_told(rows, 'row')}", flat.moved(lambda t: t[rows])
    if got.shape[1] <= MOST_COLUMNS:
        columns = _matched(got.T, value.T)
        if columns is not None:
            yield f"equals the reference after {_told(columns, 'column')}", flat.moved(lambda t: t[:, columns])


def _scaled(actual: Tensor, expected: Budgeted) -> str:
    """The factor to the reference, where everything else is within the budget."""
    got, value = actual.double(), expected.value
    gain = float((got * value).sum() / value.square().sum().clamp_min(2.0**-120))
    guess: Budgeted = RULES["mul"](expected, gain)
    # What scales a result may round it once more, to a spacing that is up to twice as wide.
    guess = replace(guess, var=9 * guess.var, bound=3 * guess.bound)
    return f"equals the reference times {gain:.4g}" if gain and compare("", actual, guess).passed else ""


def _matched(got: Tensor, value: Tensor) -> Tensor | None:
    """For each row the row of the reference that is nearest to it; None where that is its own, always."""
    nearest = torch.cdist(got, value).argmin(-1)
    own = torch.arange(len(nearest))
    # Among equal rows the own one is meant.
    same = (value[nearest] == value).all(-1)
    nearest = torch.where(same, own, nearest)
    return None if bool((nearest == own).all()) else nearest


def _told(source: Tensor, what: str) -> str:
    """A permutation in words: ``source[i]`` is what stands at place i."""
    places = torch.arange(len(source))
    wrong = (source != places).nonzero()[:, 0].tolist()
    if len(set(source.tolist())) < len(source):
        at = ", ".join(f"{i} from {int(source[i])}" for i in wrong[:SHOWN])
        return f"copying {what}s ({at}{', ...' if len(wrong) > SHOWN else ''})"
    if len(wrong) == 2:
        return f"swapping {what}s {wrong[0]} and {wrong[1]}"
    shift = int((places - source)[0]) % len(source)
    if bool((places.roll(shift) == source).all()):
        return f"moving {what}s by {shift}"
    runs = spans(wrong)
    block = wrong[-1] - wrong[0] + 1
    if block == len(wrong) and block % 2 == 0:
        half = block // 2
        inside = source[wrong[0] : wrong[-1] + 1]
        if bool((inside == places[wrong[0] : wrong[-1] + 1].roll(half)).all()):
            first = wrong[0]
            return f"swapping {what}s {first}..{first + half - 1} and {first + half}..{wrong[-1]}"
    return f"permuting {what}s {runs}"


def spans(numbers: list[int]) -> str:
    """``3..5, 9``: a rising list of integers, the first few runs of it."""
    found = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        found.append(str(members[0]) if len(members) == 1 else f"{members[0]}..{members[-1]}")
    return ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")


def _where(actual: Tensor, expected: Budgeted) -> str:
    """The rows or columns that hold every wrong element, where they are fewer than half."""
    reach = torch.minimum(6 * expected.sigma, expected.bound)
    wrong = ((actual.double() - expected.value).abs() > reach) | (actual.isnan() != expected.value.isnan())
    wrong = wrong.reshape(actual.shape[0], -1)
    if not bool(wrong.any()):
        return "errs by less than any element shows, but everywhere alike"
    rows, columns = (wrong.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    for found, of, what in ((rows, wrong.shape[0], "row"), (columns, wrong.shape[1], "column")):
        if 2 * len(found) < of:
            return f"is wrong in {what}{'s' if len(found) > 1 else ''} {spans(found)} only"
    return ""
