"""Our GPU ops in captured graphs and under torch.compile; three wrong ones, one for each way, are caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures, sizes
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import function_of, ours

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(absence("gpu") is not None, reason=f"a graph needs a GPU: {absence('gpu')}"),
]

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]
DENSE = find_op("linear")


@pytest.mark.parametrize("op", [pytest.param(name, id=f"G2-{name}") for name in BUILT])
def test_eager_replayed_changed_and_compiled_agree(op: str) -> None:
    assert list(capture_failures(find_op(op), sizes(find_op(op)), ours("gpu"), backend="aot_eager")) == []


def ways_failed(linear: Any) -> set[str]:
    provider = Provider(name="wrong", device="gpu", functions={"linear": linear}.get)
    return {way for way, _ in capture_failures(DENSE, sizes(DENSE, tokens=(2, 40)), provider, backend="aot_eager")}


def test_a_call_that_waits_for_the_device_is_caught() -> None:
    def waits(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return x @ weight.mT * (1.0 if float(x.abs().max()) < 1e30 else 0.5)

    assert "graph" in ways_failed(waits)


def test_a_remembered_input_is_caught() -> None:
    kept: dict[int, Tensor] = {}

    def remembers(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return x @ weight.mT
        return kept.setdefault(weight.data_ptr(), x @ weight.mT).clone()

    assert "changed" in ways_failed(remembers)


def test_a_branch_that_a_compiler_cannot_see_through_is_caught() -> None:
    def branches(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return x @ weight.mT * (2.0 if torch.compiler.is_compiling() else 1.0)

    assert ways_failed(branches) == {"compiled"}
