"""The smallest error that the verdict catches, per op: ``python -m minimax_m2.harness.power`` rewrites the figures.

Three planted errors, on the reference's perfect outputs at one fixed case per dtype:

    gain     every element times ``1 + g``, before its last rounding: the smallest g that is caught
    columns  so many columns set to 0 in every row: the smallest number that is caught
    rows     two rows exchanged: 1 where that is caught, else 0

A calibrated budget may still be powerless; a change that makes a figure worse fails suites/harness/test_power.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Expectation, Tensors, expectation, is_quantised
from minimax_m2.harness.op import Op, all_ops

DTYPES = ("bfloat16", "float16", "float32")
# What a small case of M2's kind has, where an op has such a field: enough rows and columns for every aggregate.
SMALL = {
    "T": 33, "H": 192, "I": 192, "N": 128, "E": 16, "K": 4, "V": 256, "S": 33, "B": 3, "Hq": 6, "Hk": 2, "D": 64,
    "R": 32, "rows": 33,
}  # fmt: skip
# Gains are tried in steps of a quarter octave, from 1 down to 2^-26.
STEPS, FINEST = 4, 104
STEP = 2.0 ** (1 / STEPS)


def small_case(op: Op, dtype: str) -> Case | None:
    """The case at which an op's power is measured, or None for a dtype it does not have."""
    fields: dict[str, Field] = {}
    for name, values in op.factors.items():
        if name == "dtype":
            if dtype not in values:
                return None
            fields[name] = dtype
        elif name in SMALL and (sizes := [value for value in values if isinstance(value, int)]):
            wanted = SMALL[name]
            fields[name] = min(sizes, key=lambda value: (abs(value - wanted), value))
    if "dtype" not in op.factors and dtype != "float32":
        return None
    return op.case(**fields)


def power(op: Op, dtype: str) -> dict[str, dict[str, float]]:
    """The figures of every output of an op at one dtype; none for an output to which no planted error applies."""
    case = small_case(op, dtype)
    if case is None:
        return {}
    right = expectation(op, case, op.full_contract(case, {}))
    found = {name: dict(_figures(right, place)) for place, name in enumerate(right.dtypes)}
    return {name: figures for name, figures in found.items() if figures}


def _figures(right: Expectation, place: int) -> Iterator[tuple[str, float]]:
    perfect = right.perfect()
    clean = perfect[place]
    if clean.numel() == 0 or clean.dtype in (torch.int32, torch.int64):
        return

    def caught(wrong: Tensor) -> bool:
        outputs = (*perfect[:place], wrong.to(clean.dtype), *perfect[place + 1 :])
        return any(not c.passed for c in right.judge(outputs))

    if not is_quantised(clean.dtype):
        value = unrounded(right, place)
        yield "gain", _gain(_finest(lambda k: caught(value * (1 + _gain(k)))))
    if clean.ndim > 1:
        width = clean.shape[-1]
        yield "columns", next((n for n in range(1, width + 1) if caught(_without(clean, n))), 0)
        if clean.shape[0] > 1:
            order = torch.arange(clean.shape[0])
            order[[0, -1]] = order[[-1, 0]]
            yield "rows", int(caught(clean[order]))


def unrounded(right: Expectation, place: int) -> Tensor:
    """The reference's value of an output in float64, where the expectation keeps it."""
    if isinstance(right, Tensors):
        value = list(right.expected.values())[place]
        return value.value if isinstance(value, Budgeted) else value.double()
    return right.perfect()[place].double()


def _gain(k: int) -> float:
    return STEP**-k


def _finest(caught: Callable[[int], bool]) -> int:
    """The largest k in 0..FINEST that is caught, by bisection: an error that escapes hides the smaller ones."""
    low, high = 0, FINEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if caught(middle) else (low, middle)
    return low


def _without(clean: Tensor, columns: int) -> Tensor:
    wrong = clean.clone()
    middle = (clean.shape[-1] - columns) // 2
    wrong[..., middle : middle + columns] = 0
    return wrong


Figures = dict[str, dict[str, dict[str, dict[str, float]]]]


def measured(ops: Iterable[Op]) -> Figures:
    """Figures by op, dtype, output and planted error."""
    found = {op.name: {dtype: power(op, dtype) for dtype in DTYPES} for op in ops}
    return {
        name: {d: f for d, f in by_dtype.items() if f} for name, by_dtype in found.items() if any(by_dtype.values())
    }


def weaker(now: Figures, committed: Figures) -> list[str]:
    """Where power has fallen: a figure that is worse than the committed one by more than a step, or is gone."""
    found = []
    for op, by_dtype in committed.items():
        for dtype, outputs in by_dtype.items():
            for output, figures in outputs.items():
                for kind, before in figures.items():
                    figure = now.get(op, {}).get(dtype, {}).get(output, {}).get(kind)
                    if figure is None or _worse(kind, figure, before):
                        found.append(f"{op} {dtype} {output}: {kind} was {before:g}, is {figure}")
    return found


def _worse(kind: str, now: float, before: float) -> bool:
    if kind == "rows":
        return now < before
    # Half a step beyond a step forgives the digits that the file does not keep.
    return now > before * STEP**1.5 or (kind == "columns" and (now == 0) != (before == 0))


def committed_file() -> Path:
    """``suites/harness/power.toml`` of the checkout this package runs from."""
    return Path(__file__).resolve().parent.parent / "suites" / "harness" / "power.toml"


def committed() -> Figures:
    return tomllib.loads(committed_file().read_text())


def as_toml(found: Figures) -> str:
    """The figures as text, one table an output."""
    lines = ["# The smallest planted error that the verdict catches: python -m minimax_m2.harness.power"]
    for op, by_dtype in found.items():
        for dtype, outputs in by_dtype.items():
            for output, figures in outputs.items():
                pairs = ", ".join(f"{kind} = {value:.3g}" for kind, value in figures.items())
                lines.append(f"{op}.{dtype}.{output} = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    committed_file().write_text(as_toml(measured(all_ops().values())))
