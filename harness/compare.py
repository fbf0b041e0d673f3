"""Judge one tensor against its budget: every element, then what elements do together.

All tests of one case share a false-alarm rate ``ALPHA``; each gets an equal part of it. Per element the limit is
``min(tau * sigma, bound)``, with ``tau`` from the number of elements. From 32 elements up four aggregates are tested
too, because a small systematic error hides in every element but not in their sum:

    mean     mean of z^2 over all elements
    row      largest mean of z^2 in a row of at least 32 columns
    column   largest mean of z^2 in a column of at least 32 rows
    gain     projection of z on the reference: a wrong scale

Their limits are chi-square and normal quantiles at the effective number of degrees of freedom, which shared errors,
contractions over few terms and rare steps lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.formats import FORMATS, half_ulp, name_of
from minimax_m2.harness.quantiles import bernstein, chi_square_mean, two_sided_normal

ALPHA = 1e-8
AGGREGATE_FROM = 32
# Aggregates look at evenly spaced rows of a larger output: what a quarter of a million elements hide is smaller than
# what the budget itself is trusted with. Every element is judged alone all the same.
AGGREGATE_UP_TO = 2**18
RAREST_STEP = 8.0  # in standard deviations: a step that one correct kernel in 64 makes
# First-order propagation is itself an estimate of the variance; over millions of elements a mean of squares would
# tell the estimate's error from the kernel's. docs/calibration.md holds what was seen op by op.
MODEL_ERROR = 0.05


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
    emulated: Callable[[], Tensor] | None = None,
    *,
    hasty: bool = False,
) -> Comparison:
    """Hold ``actual`` against ``expected`` and its budget; if ``hasty``, no further than the first failure.

    ``emulated`` makes what a kernel returns that rounds where the contract says and nowhere else. Its error is known,
    so where the gain test fails without that knowledge it is not counted: cosines just below 1 shrink every product
    that is rounded, which noise would not.
    """
    got = actual.to(torch.float64)
    specified = torch.isfinite(expected.value) & torch.isfinite(expected.bound)
    same = (got == expected.value) | (got.isnan() & expected.value.isnan())
    count = max(1, expected.value.numel())
    each = alpha / (5 * count)
    tau = two_sided_normal(each)
    reach = bernstein(expected.sigma, expected.jump, tau, each)
    limit = torch.minimum(reach, expected.bound)
    error = (got - expected.value).abs()
    share = torch.where(limit > 0, error / limit, torch.where(error > 0, torch.inf, 0.0))
    # A value that the budget cannot place (overflow, division by what may be 0) judges nothing; NaN for NaN does.
    open_end = torch.isfinite(expected.value) & ~torch.isfinite(expected.bound)
    share = torch.where(same | open_end, 0.0, share)
    share = torch.where((got.isnan() & ~expected.value.isnan() & ~open_end), torch.inf, share).nan_to_num(
        torch.inf, posinf=torch.inf
    )
    found = _by_element(output, share, got, expected.value, limit)
    if hasty and not found.passed:
        return found
    tests, mean_z2 = dict(found.tests), float("nan")
    noisy = specified & (expected.sigma > 0)
    if expected.jump is not None:
        # A step that is this rare says nothing about a mean; its element has been judged alone.
        noisy &= expected.jump <= RAREST_STEP * expected.sigma
    width = got.shape[-1] if got.ndim else 1
    rows = torch.arange(got.numel() // max(1, width))
    if got.numel() > AGGREGATE_UP_TO:
        rows = torch.linspace(0, len(rows) - 1, max(1, AGGREGATE_UP_TO // width)).round().long().unique()
        got, noisy = (t.reshape(-1, width)[rows] for t in (got, noisy))
        expected = expected.moved(lambda t: t.reshape(-1, width)[rows])

    def held() -> Tensor | None:
        return None if emulated is None else emulated().to(torch.float64).reshape(-1, width)[rows]

    if int(noisy.sum()) >= AGGREGATE_FROM and bool(torch.isfinite(got[noisy]).all()):
        aggregates, mean_z2 = _aggregates(got, expected, actual.dtype, noisy, alpha / 5, held)
        tests.update(aggregates)
    return Comparison(output, tests, found.worst, found.elements, int(open_end.sum()), mean_z2)


def _by_element(output: str, share: Tensor, actual: Tensor, expected: Tensor, limit: Tensor) -> Comparison:
    if share.numel() == 0:
        return Comparison(output, {}, None, 0)
    flat = int(share.flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), share.shape))
    worst = Mismatch(index, float(actual[index]), float(expected[index]), float(limit[index]))
    return Comparison(output, {"element": float(share.flatten()[flat])}, worst, share.numel())


def _drift(dtype: torch.dtype, expected: Budgeted) -> Tensor:
    """The error of each element's last rounding, where that is all the budget holds and it is therefore known.

    Values that share a significand with their neighbours on the grid (a weight times nearly 1, denormals) err alike;
    noise of the same size would not. A prior error of a tenth of the variance moves so few roundings that what is
    left after the known part has nine tenths of the variance.
    """
    fmt = FORMATS[name_of(dtype)]
    error = expected.value.to(dtype).to(torch.float64) - expected.value
    variance = expected.sigma.square()
    alone = variance <= 1.1 * half_ulp(expected.value, fmt).square() / 3
    alone |= (variance - error.square()).abs() <= 1e-9 * variance
    return torch.where(alone & torch.isfinite(error), error, 0.0)


def _aggregates(
    got: Tensor,
    expected: Budgeted,
    dtype: torch.dtype,
    noisy: Tensor,
    alpha: float,
    emulated: Callable[[], Tensor | None],
) -> tuple[dict[str, float], float]:
    width = got.shape[-1] if got.ndim else 1
    mask = noisy.reshape(-1, width)
    sigma = torch.where(mask, expected.sigma.reshape(-1, width), 1.0)
    z = torch.where(mask, (got - expected.value).reshape(-1, width) / sigma, 0.0)
    reference = torch.where(mask, expected.value.reshape(-1, width) / sigma, 0.0)
    drift = torch.where(mask, _drift(dtype, expected).reshape(-1, width) / sigma, 0.0)
    last = expected.value.to(dtype).to(torch.float64) - expected.value
    last = torch.where(mask & torch.isfinite(last).reshape(-1, width), last.reshape(-1, width) / sigma, 0.0)
    shares = [
        (torch.where(mask, s.coef.reshape(-1, width) / sigma, 0.0), s.label.reshape(-1, width)) for s in expected.shared
    ]
    limited = torch.zeros_like(z)
    if expected.limited is not None:
        limited = torch.where(mask, expected.limited.reshape(-1, width) / sigma.square(), 0.0)
    kurtosis = torch.zeros_like(z)
    if expected.jump is not None:
        kurtosis = torch.where(mask, (expected.jump.reshape(-1, width) / sigma).square(), 0.0)
    own = (mask.double() - sum((coef.square() for coef, _ in shares), start=torch.zeros_like(z))).clamp_min(0)
    alike = _alike(expected.value.reshape(-1, width))
    rows, columns = torch.arange(z.shape[0])[:, None].expand(z.shape), torch.arange(width)[None, :].expand(z.shape)
    tests = {}

    def mean_square(name: str, group: Tensor, groups: int, part: float) -> float:
        count = _by_group(mask.double(), group, groups)
        spread = _coherence(own * (1 + kurtosis / 2), alike, group, groups)
        # Errors behind a contraction are alike along a row only.
        spread = spread + _coherence(limited, rows, group, groups)
        power = torch.zeros_like(own)
        for coef, label in shares:
            spread = spread + _coherence(coef.square(), label, group, groups)
            power = power + coef.square().square()
        if shares:
            # The square of a sum of independent parts varies by their products, too.
            spread = spread + _by_group((mask.double() - own.square() - power).clamp_min(0), group, groups)
        enough = count >= AGGREGATE_FROM
        statistic = _by_group(z.square(), group, groups)[enough] / count[enough]
        if statistic.numel():
            quantile = chi_square_mean((count.square() / spread)[enough], part / groups)
            # One shared error that dominates has the tail of a single square, longer than that of the matching mean.
            one = chi_square_mean(torch.ones(1, dtype=torch.float64), part / groups)
            for coef, label in shares:
                heaviest = (_heaviest(coef.square(), label, group, groups) / count)[enough]
                quantile = torch.maximum(quantile, 1 + heaviest * (one - 1))
            foreseen = (_by_group(drift.square(), group, groups)[enough] / count[enough]).clamp_min(1.0)
            foreseen = foreseen * (1 + MODEL_ERROR)
            tests[name] = float((statistic / (foreseen * quantile)).max())
        return float(statistic.mean()) if statistic.numel() else float("nan")

    everything = torch.zeros_like(rows)
    mean_z2 = mean_square("mean", everything, 1, alpha)
    if z.shape[0] > 1:
        mean_square("row", rows, z.shape[0], alpha)
        mean_square("column", columns, width, alpha)
    norm = reference.square().sum().sqrt()
    if float(norm) > 0:
        direction = reference / norm
        # Errors behind a contraction over R terms line up with the output they perturb: up to 3 width / R.
        inflated = (own * (1 + 4 * width * limited.square())).sqrt()
        steps = (kurtosis.sqrt() * direction.abs()).amax() if expected.jump is not None else None

        def allowed(relabelled: Callable[[Tensor], Tensor] = lambda label: label) -> Tensor:
            variance = _coherence(inflated * direction.abs(), alike, everything, 1)[0]
            for coef, label in shares:
                variance = variance + _coherence(coef * direction, relabelled(label), everything, 1)[0]
            return bernstein(variance.sqrt(), steps, two_sided_normal(alpha), alpha)

        reach = allowed()
        # A kernel without the noise that the budget allows before the last rounding errs by that rounding alone.
        strays = (((z - known) * direction).sum().abs() for known in (drift, last))
        stray = float(min(strays))
        if stray > float(reach) and (promised := emulated()) is not None:
            known = torch.where(mask, (promised - expected.value.reshape(-1, width)) / sigma, 0.0)
            stray = min(stray, float(((z - known) * direction).sum().abs()))
        if stray > float(reach) and shares:
            reach = allowed(lambda label: _rows_alike(expected.value.reshape(-1, width), label))
        # A direction that no error reaches allows no error.
        tests["gain"] = stray / float(reach) if float(reach) > 0 else 0.0 if stray == 0 else float("inf")
    return tests, mean_z2


def _alike(value: Tensor) -> Tensor:
    """Label elements whose significands agree: the same number rounds to the same error, whatever its exponent."""
    significand = (torch.frexp(value.abs()).mantissa * 2.0**40).round().to(torch.int64)
    return significand.flatten().unique(return_inverse=True)[1].view(value.shape)


def _rows_alike(value: Tensor, label: Tensor) -> Tensor:
    """Give rows of the same numbers, in whatever order, one label where each had one: what they share is one error."""
    if not bool((label == label[:, :1]).all()):
        return label
    mantissa, exponent = torch.frexp(value.sort(-1).values)
    key = (mantissa * 2.0**40).round().to(torch.int64) + (exponent.to(torch.int64) << 42)
    return key.unique(dim=0, return_inverse=True)[1][:, None].expand(label.shape)


def _by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.float64).index_add(0, group.flatten(), values.flatten())


def _coherence(values: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Per group, the sum over labels of the squared sum of ``values``: what elements with one error add up to."""
    occurs = label.flatten().bincount()
    if int(occurs.max()) <= 1:
        return _by_group(values.square(), group, groups)
    sums, owner = _by_label(values, label, group)
    return torch.zeros(groups, dtype=torch.float64).index_add(0, owner, sums.square())


def _heaviest(values: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Per group, the largest sum of ``values`` under one label."""
    sums, owner = _by_label(values, label, group)
    return torch.zeros(groups, dtype=torch.float64).scatter_reduce(0, owner, sums, "amax")


def _by_label(values: Tensor, label: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``values`` by group and label, and the group of each sum."""
    labels = int(label.max()) + 1
    keys, inverse = (group.flatten() * labels + label.flatten()).unique(return_inverse=True)
    sums = torch.zeros(len(keys), dtype=torch.float64).index_add(0, inverse, values.flatten())
    return sums, torch.div(keys, labels, rounding_mode="floor")
