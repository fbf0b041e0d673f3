"""Judge one tensor against its budget: every element, then what elements do together.

All tests of one case share a false-alarm rate ``ALPHA``; each gets an equal part of it. Per element the limit is
``min(tau * sigma, bound)``, with ``tau`` from the number of elements. From 32 elements up four aggregates are tested
too, because a small systematic error hides in every element but not in their sum:

    mean     mean of z^2 over all elements
    row      largest mean of z^2 in a row of at least 32 columns
    column   largest mean of z^2 in a column of at least 32 rows
    gain     projection of z on the reference: a wrong scale

``limits`` says how the limits of all of them come about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.limits import limits

ALPHA = 1e-8


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The element that strays furthest, as a share of its limit."""

    index: tuple[int, ...]
    actual: float
    expected: float
    limit: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tests of one output: statistic over limit by name, so 1 is the edge of the budget."""

    output: str
    tests: dict[str, float]
    worst: Mismatch | None
    elements: int
    unspecified: int = 0
    mean_z2: float = float("nan")
    notes: list[str] = field(default_factory=list)

    @property
    def utilisation(self) -> float:
        # A statistic that is not a number proves nothing, so it passes nothing.
        return max((float("inf") if math.isnan(share) else share for share in self.tests.values()), default=0.0)

    @property
    def passed(self) -> bool:
        return self.utilisation <= 1.0


def exactly(output: str, actual: Tensor, expected: Tensor) -> Comparison:
    """Require equality, as for integers and copies; NaN equals NaN."""
    differs = (actual != expected) & ~((actual != actual) & (expected != expected))
    return _by_element(output, differs.double() * 2.0, actual, expected.double(), torch.zeros(expected.shape))


def within_codes(output: str, actual: Tensor, expected: Budgeted) -> Comparison:
    """Require a code between the lowest and the highest that a correct quantiser may produce."""
    if expected.allowed is None:
        raise ValueError(f"{output}: the reference's value did not come from a quantiser; compare it with `compare`")
    got = actual.to(torch.float64)
    low, high = expected.allowed
    outside = ~((got >= low) & (got <= high))
    return _by_element(output, outside.double() * 2.0, got, expected.value, (high - low) / 2)


def compare(
    output: str,
    actual: Tensor,
    expected: Budgeted,
    alpha: float = ALPHA,
    emulated: Sequence[Callable[[], Tensor]] = (),
    *,
    hasty: bool = False,
) -> Comparison:
    """Hold ``actual`` against ``expected`` and its budget; if ``hasty``, no further than the first failure.

    ``emulated`` make what kernels return that round where the contract says, and else nowhere or as float32 does; the
    gain test may ask for them.
    """
    got, known = actual.to(torch.float64), limits(expected, actual.dtype, alpha)
    same = (got == expected.value) | (got.isnan() & expected.value.isnan())
    # A value that the budget cannot place judges nothing; where it can, NaN stands for NaN and for nothing else.
    share = torch.where(same | known.open_end, 0.0, (got - expected.value).abs() / known.element)
    found = _by_element(output, share.nan_to_num(torch.inf, posinf=torch.inf), got, expected.value, known.element)
    tests, mean_z2 = dict(found.tests), float("nan")
    decided = hasty and not found.passed
    if not decided and known.together is not None and known.together.can_judge(got):
        aggregates, mean_z2 = known.together.judge(got, emulated)
        tests |= aggregates
    return Comparison(output, tests, found.worst, found.elements, int(known.open_end.sum()), mean_z2)


def _by_element(output: str, share: Tensor, actual: Tensor, expected: Tensor, limit: Tensor) -> Comparison:
    if share.numel() == 0:
        return Comparison(output, {}, None, 0)
    flat = int(share.flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), share.shape))
    worst = Mismatch(index, float(actual[index]), float(expected[index]), float(limit[index]))
    return Comparison(output, {"element": float(share.flatten()[flat])}, worst, share.numel())
