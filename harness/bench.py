"""What ``suites/bench_<op>.py`` is written with: pytest-benchmark on a cell whose outputs were just verified.

A benchmark asks for the fixture ``timed``; the cell comes from the parameters, the op from the file's name. What
pytest-benchmark saves holds a record of each, of the type that every other command writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Canary, Record, Timing
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.run import run_name
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
        record = Record.of(verdict, run=run_name(), purpose="pytest")
        benchmark.extra_info.update(cell=cell.id, shape=shape, call=name, record=json.loads(record.json))
        with provider.enter(cell.variant):
            benchmark(action)

    return timed


def benchmarked(saved: Mapping[str, Any], roof_of: Callable[[str], Roof], *, run: str) -> list[Record]:
    """The records of a benchmark session, from what pytest-benchmark saves; benchmarks of others have none.

    ``roof_of`` measures the roof of a device.
    """
    return [_timed_record(found, roof_of, run) for found in saved["benchmarks"] if "record" in found["extra_info"]]


def _timed_record(found: Mapping[str, Any], roof_of: Callable[[str], Roof], run: str) -> Record:
    about, stats = found["extra_info"], found["stats"]
    record = Record.from_json(json.dumps(about["record"]))
    roof = roof_of(record.device)
    case = Case(record.case)
    cost = find_op(case.op).cost(case)
    dtype = case.word("dtype") if "dtype" in case else "float32"
    timing = Timing(
        shape=about["shape"], call=about["call"], median_us=stats["median"] * 1e6, best_us=stats["min"] * 1e6,
        calls=stats["rounds"] * stats["iterations"], bytes=cost.bytes, flops=cost.flops,
        roof_us=roof.seconds(cost, dtype) * 1e6, clock="pytest-benchmark",
    )  # fmt: skip
    return replace(record, run=run, timing=timing, canary=Canary.of(roof))
