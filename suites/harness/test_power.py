"""Power is published and does not fall: the smallest planted errors that the verdict catches, per op and dtype."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from minimax_m2.harness import expectation
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.compare import Comparison, compare
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.power import STEP, as_toml, committed, measured, weaker


def test_power_has_not_fallen(op_name: str) -> None:
    now = measured([find_op(op_name)])
    before = {name: figures for name, figures in committed().items() if name == op_name}
    assert weaker(now, before) == []
    assert set(now) == set(before), "run python -m minimax_m2.harness.power"


def test_figures_belong_to_ops() -> None:
    assert set(committed()) <= set(all_ops())


def loose(output: str, actual: Tensor, expected: Budgeted, alpha: float, **more: Any) -> Comparison:
    """A comparator that somebody made four times too wide."""
    shared = tuple(part._replace(coef=part.coef * 4) for part in expected.shared)
    wide = replace(expected, var=expected.var * 16, bound=expected.bound * 4, shared=shared)
    return compare(output, actual, wide, alpha, **more)


@pytest.mark.parametrize("name", ["linear", "rms_norm"])
def test_a_comparator_four_times_too_wide_has_less_power(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "compare", loose)
    assert weaker(measured([find_op(name)]), {name: committed()[name]}) != []


@pytest.mark.parametrize("kind, now", [("gain", 1e-3 * STEP**2), ("columns", 2.0), ("columns", 0.0), ("rows", 0.0)])
def test_a_worse_figure_is_weaker(kind: str, now: float) -> None:
    before = {"linear": {"bfloat16": {"y": {"gain": 1e-3, "columns": 1.0, "rows": 1.0}}}}
    worse = copy.deepcopy(before)
    assert weaker(worse, before) == []
    worse["linear"]["bfloat16"]["y"][kind] = now
    assert [kind in line for line in weaker(worse, before)] == [True]
    assert weaker({}, before) != []


def test_the_file_reads_back_as_written() -> None:
    found = measured([find_op("linear")])
    assert weaker({"linear": committed()["linear"]}, found) == []
    assert as_toml(found).splitlines()[1:] == [
        line for line in as_toml(committed()).splitlines() if line.startswith("linear.")
    ]
