"""Bad calls on a GPU: what a host can know is refused by name; an index that only the data tells hurts nobody."""

from __future__ import annotations

import pytest

from minimax_m2.harness.bad_calls import answered_by_launches
from minimax_m2.harness.devices import absence
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.providers.ours import function_of, ours
from minimax_m2.harness.sampling import sampled

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(absence("gpu") is not None, reason=f"a launch needs a GPU: {absence('gpu')}"),
]

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]
SAMPLE = 12


@pytest.mark.parametrize("op", [pytest.param(name, id=f"G2-{name}") for name in BUILT])
def test_bad_calls_are_refused_and_bad_indices_are_memory_safe(op: str) -> None:
    provider, declared = ours("gpu"), find_op(op)
    taken = [case for case in sampled(declared, SAMPLE) if provider.refuses(declared, case) is None]
    assert list(answered_by_launches(declared, provider, taken)) == []
