"""Our GPU ops in captured graphs and under torch.compile, across every size at which they change their code path."""

from __future__ import annotations

import pytest

from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures, sizes
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.providers.ours import function_of, ours

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(absence("gpu") is not None, reason=f"a graph needs a GPU: {absence('gpu')}"),
]

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]


@pytest.mark.parametrize("op", [pytest.param(name, id=f"G2-{name}") for name in BUILT])
def test_eager_replayed_changed_and_compiled_agree(op: str) -> None:
    assert list(capture_failures(find_op(op), sizes(find_op(op)), ours("gpu"), backend="aot_eager")) == []
