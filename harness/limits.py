"""How far an output may stray: everything in a comparison that no kernel's answer changes.

Per element the limit is ``min(tau * sigma, bound)``, with ``tau`` from the number of elements. What elements do
together is limited by chi-square and normal quantiles at the effective number of degrees of freedom, which shared
errors, contractions over few terms and rare steps lower. Limits are made once and serve every answer to a case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.formats import FORMATS, half_ulp, name_of
from minimax_m2.harness.groups import by_group, coherence, heaviest, numbered, rows_alike, significands
from minimax_m2.harness.quantiles import bernstein, chi_square_mean, two_sided_normal

AGGREGATE_FROM = 32
# Aggregates look at evenly spaced rows of a larger output: what a quarter of a million elements hide is smaller than
# what the budget itself is trusted with. Every element is judged alone all the same.
AGGREGATE_UP_TO = 2**18
RAREST_STEP = 8.0  # in standard deviations: a step that one correct kernel in 64 makes
# First-order propagation is itself an estimate of the variance; over millions of elements a mean of squares would
# tell the estimate's error from the kernel's. docs/calibration.md holds what was seen op by op.
MODEL_ERROR = 0.05


class Limits(NamedTuple):
    """The limits of one output at one false-alarm rate.

    element   largest error of each element
    open_end  elements that the budget cannot place (overflow, division by what may be 0): they judge nothing
    together  limits of what elements do together; None where too few of them have noise
    """

    element: Tensor
    open_end: Tensor
    together: Together | None


class MeanSquare(NamedTuple):
    """Limits of the mean of z^2 in each of some groups, of those with enough members: ``reach`` times the foreseen."""

    group: Tensor
    members: Tensor
    enough: Tensor
    foreseen: Tensor
    reach: Tensor

    def of(self, square: Tensor) -> Tensor:
        """The mean of ``square`` in each group."""
        return by_group(square, self.group, len(self.members))[self.enough] / self.members[self.enough]

    def share(self, mean: Tensor, foreseen: Tensor) -> float:
        """The largest mean over its limit, where errors that are known have the mean squares ``foreseen``."""
        return float((mean / (torch.maximum(self.foreseen, foreseen) * self.reach)).max())


@lru_cache(maxsize=64)
def limits(expected: Budgeted, dtype: torch.dtype, alpha: float) -> Limits:
    """Limits of all tests on an output of ``dtype`` that together cry wolf at most ``alpha`` often."""
    each = alpha / (5 * max(1, expected.value.numel()))
    reach = bernstein(expected.sigma, expected.jump, two_sided_normal(each), each)
    finite = torch.isfinite(expected.value)
    specified = finite & torch.isfinite(expected.bound)
    noisy = specified & (expected.sigma > 0)
    if expected.jump is not None:
        # A step that is this rare says nothing about a mean; its element has been judged alone.
        noisy &= expected.jump <= RAREST_STEP * expected.sigma
    together = Together(expected, dtype, noisy, alpha / 5)
    return Limits(
        element=torch.minimum(reach, expected.bound),
        # 0 / 0 is no number in the reference, but a kernel's 0 may be anything small.
        open_end=torch.where(
            finite, ~torch.isfinite(expected.bound), expected.value.isnan() & expected.bound.isposinf()
        ),
        together=together if int(together.mask.sum()) >= AGGREGATE_FROM else None,
    )


class Together:
    """Limits of the aggregates of an output whose elements ``noisy`` have noise; ``alpha`` is each test's rate.

    All is in units of each element's standard deviation, as rows of the output's last dimension.
    """

    def __init__(self, expected: Budgeted, dtype: torch.dtype, noisy: Tensor, alpha: float) -> None:
        self._alpha, self._dtype = alpha, dtype
        self._width = expected.shape[-1] if expected.ndim else 1
        count = noisy.numel() // max(1, self._width)
        self._rows = torch.arange(count)
        if noisy.numel() > AGGREGATE_UP_TO:
            chosen = torch.linspace(0, count - 1, max(1, AGGREGATE_UP_TO // self._width))
            self._rows = chosen.round().long().unique()
        self.mask = self._matrix(noisy)
        self._expected = expected.moved(self._matrix)

    def can_judge(self, got: Tensor) -> bool:
        """Whether every element that counts is a finite number."""
        return bool(torch.isfinite(self._matrix(got)[self.mask]).all())

    def judge(self, got: Tensor, emulated: Sequence[Callable[[], Tensor]]) -> tuple[dict[str, float], float]:
        """Each test's statistic over its limit by name, then the mean of z^2 over all elements.

        ``emulated`` make what kernels return that round where the contract says and else nowhere, or as float32 does.
        Their errors are known, so where the gain test fails without that knowledge they are not counted: cosines just
        below 1 shrink every product that is rounded, and e4m3 codes times one scale round in eight ways only, which
        noise would not. Nor is a mean square an alarm that such errors have by themselves: few numbers times nearly one
        cosine err in few ways.
        """
        z, found = self._z(got), {}
        square = z.square()
        for name, known in self._mean_squares.items():
            mean = known.of(square)
            if mean.numel():
                found[name] = known.share(mean, known.foreseen)
            for kernel in emulated:
                if found.get(name, 0.0) > 1:
                    found[name] = min(found[name], known.share(mean, known.of(self._z(kernel()).square())))
        if bool(self._direction.any()):
            found["gain"] = self._gain(z, emulated)
        return found, float(square.sum() / self.mask.sum())

    def _gain(self, z: Tensor, emulated: Sequence[Callable[[], Tensor]]) -> float:
        """The projection of z on the reference over its limit."""
        # A kernel without the noise that the budget allows before the last rounding errs by that rounding alone.
        stray, reach = min(self._along(z - known) for known in (self._drift, self._last)), self._reach
        for known in emulated:
            if stray > reach:
                stray = min(stray, self._along(z - self._z(known())))
        if stray > reach and self._shares:
            reach = self._reach_of_like_rows
        # A direction that no error reaches allows no error.
        return stray / reach if reach > 0 else 0.0 if stray == 0 else float("inf")

    def _along(self, z: Tensor) -> float:
        return float((z * self._direction).sum().abs())

    def _matrix(self, whole: Tensor) -> Tensor:
        return whole.reshape(-1, self._width)[self._rows] if self._width else whole.reshape(0, 0)

    def _in_sigma(self, error: Tensor) -> Tensor:
        return torch.where(self.mask & torch.isfinite(error), error / self._sigma, 0.0)

    def _z(self, got: Tensor) -> Tensor:
        return self._in_sigma(self._matrix(got.to(torch.float64)) - self._expected.value)

    @cached_property
    def _sigma(self) -> Tensor:
        return torch.where(self.mask, self._expected.sigma, 1.0)

    @cached_property
    def _last(self) -> Tensor:
        """The error of the last rounding."""
        return self._in_sigma(self._expected.value.to(self._dtype).to(torch.float64) - self._expected.value)

    @cached_property
    def _drift(self) -> Tensor:
        """The error of each element's last rounding, where that is all the budget holds and it is therefore known.

        Values that share a significand with their neighbours on the grid (a weight times nearly 1, denormals) err
        alike; noise of the same size would not. A prior error of a tenth of the variance moves so few roundings that
        what is left after the known part has nine tenths of the variance.
        """
        value, variance = self._expected.value, self._expected.sigma.square()
        alone = variance <= 1.1 * half_ulp(value, FORMATS[name_of(self._dtype)]).square() / 3
        error = self._last * self._sigma
        alone |= (variance - error.square()).abs() <= 1e-9 * variance
        return torch.where(alone, self._last, 0.0)

    @cached_property
    def _shares(self) -> list[tuple[Tensor, Tensor]]:
        return [(self._in_sigma(part.coef), numbered(part.label)) for part in self._expected.shared]

    @cached_property
    def _own(self) -> Tensor:
        """Each element's part of its variance that it shares with none."""
        shared = sum((coef.square() for coef, _ in self._shares), start=torch.zeros_like(self._sigma))
        return (self.mask.double() - shared).clamp_min(0)

    @cached_property
    def _limited(self) -> Tensor:
        limited = self._expected.limited
        return torch.zeros_like(self._sigma) if limited is None else self._in_sigma(limited) / self._sigma

    @cached_property
    def _kurtosis(self) -> Tensor:
        jump = self._expected.jump
        return torch.zeros_like(self._sigma) if jump is None else self._in_sigma(jump).square()

    @cached_property
    def _alike(self) -> Tensor:
        return significands(self._expected.value)

    @cached_property
    def _mean_squares(self) -> dict[str, MeanSquare]:
        count, width = self.mask.shape
        rows, columns = torch.arange(count)[:, None].expand(count, width), torch.arange(width).expand(count, width)
        found = {"mean": self._mean_square(torch.zeros_like(rows), 1, rows)}
        if count > 1:
            found["row"] = self._mean_square(rows, count, rows)
            found["column"] = self._mean_square(columns, width, rows)
        return found

    def _mean_square(self, group: Tensor, groups: int, rows: Tensor) -> MeanSquare:
        count = by_group(self.mask.double(), group, groups)
        enough = count >= AGGREGATE_FROM
        spread = coherence(self._own * (1 + self._kurtosis / 2), self._alike, group, groups)
        # Errors behind a contraction are alike along a row only.
        spread = spread + coherence(self._limited, rows, group, groups)
        power = torch.zeros_like(self._own)
        for coef, label in self._shares:
            spread = spread + coherence(coef.square(), label, group, groups)
            power = power + coef.square().square()
        if self._shares:
            # The square of a sum of independent parts varies by their products, too.
            products = (self.mask.double() - self._own.square() - power).clamp_min(0)
            spread = spread + by_group(products, group, groups)
        quantile = chi_square_mean((count.square() / spread)[enough], self._alpha / groups)
        # One shared error that dominates has the tail of a single square, longer than that of the matching mean.
        one = chi_square_mean(torch.ones(1, dtype=torch.float64), self._alpha / groups)
        for coef, label in self._shares:
            most = (heaviest(coef.square(), label, group, groups) / count)[enough]
            quantile = torch.maximum(quantile, 1 + most * (one - 1))
        # Where numbers repeat, the errors of the last rounding do, and their mean square is not that of noise.
        foreseen = (by_group(self._last.square(), group, groups) / count)[enough].clamp_min(1.0)
        return MeanSquare(group, count, enough, foreseen, (1 + MODEL_ERROR) * quantile)

    @cached_property
    def _direction(self) -> Tensor:
        """The reference as a unit vector; zero where the reference is."""
        reference = self._in_sigma(self._expected.value)
        norm = reference.square().sum().sqrt()
        return reference / norm if float(norm) > 0 else reference

    @cached_property
    def _reach(self) -> float:
        return self._allowed(lambda label: label)

    @cached_property
    def _reach_of_like_rows(self) -> float:
        return self._allowed(lambda label: rows_alike(self._expected.value, label))

    def _allowed(self, relabelled: Callable[[Tensor], Tensor]) -> float:
        """How far the projection of correct errors on the reference reaches."""
        direction = self._direction
        # Errors behind a contraction over R terms line up with the output they perturb: up to 3 width / R.
        inflated = (self._own * (1 + 4 * self._width * self._limited.square())).sqrt()
        everything = torch.zeros(self.mask.shape, dtype=torch.long)
        variance = coherence(inflated * direction.abs(), self._alike, everything, 1)[0]
        for coef, label in self._shares:
            variance = variance + coherence(coef * direction, relabelled(label), everything, 1)[0]
        steps = None if self._expected.jump is None else (self._kurtosis.sqrt() * direction.abs()).amax()
        return float(bernstein(variance.sqrt(), steps, two_sided_normal(self._alpha), self._alpha))
