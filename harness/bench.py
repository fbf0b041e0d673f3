"""What ``suites/bench_<op>.py`` is written with: pytest-benchmark on a cell whose outputs were just verified.

A benchmark asks for the fixture ``timed``; the cell comes from the parameters, the op from the file's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minimax_m2.harness.judge import judge
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.timing import actions

Timed = Callable[[str, str], None]


def timed_by(benchmark: Any, cell: Cell, provider: Provider) -> Timed:
    """Time one shape of an op under pytest-benchmark. A wrong output is an AssertionError, never a time."""

    def timed(op_name: str, shape: str) -> None:
        op = find_op(op_name)
        verdict = judge(op.shape(shape), provider, cell.variant)
        if not verdict.passed:
            raise AssertionError(verdict.explain(provider.source))
        name, action = actions(op, op.shape(shape), provider)[-1]
        benchmark.extra_info.update(cell=cell.id, shape=shape, call=name, case=op.shape(shape).json)
        with provider.enter(cell.variant):
            benchmark(action)

    return timed
