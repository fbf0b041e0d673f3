"""How near predicted and observed errors are, per op: ``python -m minimax_m2.harness.calibration`` rewrites the page.

A kernel that rounds exactly where the contract says is emulated: the reference under its full contract, on float32
tensors. The mean of its squared errors over the budget's variance, z^2, is 1 for a budget that says what happens, and
below 1 for one that allows for kernels less accurate than torch's (float32 sums in one lane, exp of 1 ulp).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import emulated, expectation
from minimax_m2.harness.formats import name_of
from minimax_m2.harness.op import Op, all_ops
from minimax_m2.harness.sampling import sampled

CASES = 120
# Factors that scale the weights: by name (0.005, 0.02, 0.1) or in thousandths.
WEIGHT_SCALES = ({"0.005", "0.02", "0.1"}, {5, 20, 100})


@dataclass(frozen=True, slots=True, order=True)
class Figure:
    """Mean z^2 of one output at one dtype and weight scale."""

    op: str
    output: str
    dtype: str
    weights: str
    mean_z2: float
    elements: int


def figures(op: Op, cases: int = CASES) -> list[Figure]:
    """Measure the first ``cases`` sampled cases of an op."""
    field = weight_scale(op)
    total: defaultdict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for case in sampled(op, cases):
        if degenerate(case):
            continue
        contract = op.full_contract(case, {})
        right = expectation(op, case, contract)
        for found in right.judge(emulated(op, case, contract, torch.float32)):
            if found.mean_z2 == found.mean_z2:
                key = (found.output, name_of(right.dtypes[found.output]), _scale(case, field))
                total[key][0] += found.mean_z2 * found.elements
                total[key][1] += found.elements
    return sorted(Figure(op.name, *key, z2 / count, int(count)) for key, (z2, count) in total.items())


def degenerate(case: Case) -> bool:
    """Whether values repeat or are representable already, so that rounding them is no noise.

    Rows of equal values normalise to 1; float16 has few denormals; a softmax that one key wins returns its value.
    """
    regime = case.get("regime")
    few = regime == "tiny" and case.get("dtype") == "float16"
    # Near 0 a sigmoid has few values: over 2,049 rows its error is one draw, which would outweigh all other cases.
    few |= regime == "tiny" and "swiglu" in case.op and case.number("T") >= 1024
    return regime == "equal" or few or (case.op == "attention" and regime == "huge")


def weight_scale(op: Op) -> str | None:
    """The factor that scales an op's weights, if it has one."""
    return next((n for n, values in op.factors.items() if any(s <= set(values) for s in WEIGHT_SCALES)), None)


def _scale(case: Case, field: str | None) -> str:
    if field is None:
        return ""
    value = case[field]
    return f"{value / 1000:g}" if isinstance(value, int) else value


def page(found: Iterable[Figure], cases: int = CASES) -> str:
    """The figures as a page of Markdown."""
    return "\n".join(_lines(found, cases)) + "\n"


def _lines(found: Iterable[Figure], cases: int) -> Iterator[str]:
    yield "# Calibration\n"
    yield "Mean z^2, observed over predicted error variance, of a kernel that rounds where the default contract says"
    yield "and otherwise computes as torch does in float32. Where a 16-bit rounding dominates it is 1 within a quarter;"
    yield "float32 budgets also allow for sums in one lane, exp of 1 ulp and rsqrt of 2. Cases are left out whose"
    yield "values are representable already: rows of equal values, float16's denormals, a softmax that one key wins.\n"
    yield f"*simulated* (seeds 0 to {cases - 1}, `python -m minimax_m2.harness.calibration`)\n"
    yield "| op | output | dtype | weight scale | mean z^2 | elements |"
    yield "|---|---|---|---|---|---|"
    for f in found:
        yield f"| {f.op} | {f.output} | {f.dtype} | {f.weights} | {f.mean_z2:.3f} | {f.elements} |"


def main() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "calibration.md").write_text(page(f for op in all_ops().values() for f in figures(op)))


if __name__ == "__main__":
    main()
