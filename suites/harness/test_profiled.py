"""A profile names what calls spend their time in, and leaves a trace of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from minimax_m2.harness.op import find_op
from minimax_m2.harness.profiled import CALLS, profiled
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.stopwatch import RUNS, Stopwatch


def test_the_operator_that_takes_longest_comes_first(tmp_path: Path) -> None:
    square = torch.ones(256, 256)

    def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        square.mm(square)
        return x + 1

    op = find_op("rms_norm")
    watch = Stopwatch(from_object(SimpleNamespace(rms_norm=rms_norm), name="busy"), [op.case(T=2).json])
    watch.start()
    first, *rest = profiled(watch, "cpu", tmp_path / "new" / "trace.json")
    # A sample warms up by one call before each of its runs.
    assert (first.name, first.launches) == ("aten::mm", 1 + RUNS * CALLS)
    assert first.share > max(one.share for one in rest)
    assert "aten::add" in {one.name for one in rest}
    assert json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
