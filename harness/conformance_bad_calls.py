"""What a kernel refuses: ``pytest --pyargs minimax_m2.harness.conformance_bad_calls --provider FILE -m cpu``.

It is asked of kernels that are called from outside; a function inside an engine may leave these checks to its caller.
"""

from __future__ import annotations

from minimax_m2.harness.bad_calls import answered, bad_calls_of
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.sampling import sampled

SAMPLE = 12


def test_bad_calls_are_refused_by_name_and_write_nothing(cell: Cell, provider: Provider) -> None:
    op = find_op(cell.op)
    taken = [case for case in sampled(op, SAMPLE) if provider.refuses(op, case) is None]
    found = [answered(bad, op, provider, cell.variant) for bad in bad_calls_of(op, taken)]
    assert [told for told in found if told] == []
