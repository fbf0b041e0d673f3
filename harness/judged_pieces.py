"""Judge what timed calls returned piece by piece: a state for each of many sequences is more than a budget can hold.

A budget keeps some ten numbers in float64 for each that it judges. Pieces hang on nothing but themselves, and together
they are all of the outputs.
"""

from __future__ import annotations

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import ALPHA, Comparison
from minimax_m2.harness.expectation import Outputs, expectation
from minimax_m2.harness.judge import malformed
from minimax_m2.harness.limits import limits
from minimax_m2.harness.op import Declared, Op
from minimax_m2.harness.verdict import Outcome, describe


def by_pieces(
    op: Op, case: Case, declared: Declared, outputs: Outputs
) -> tuple[Outcome, str, tuple[Comparison, ...]]:  # fmt: skip
    """Outcome, evidence and comparisons of one call's outputs; the first piece that is wrong decides.

    All pieces together cry wolf as often as one judgement would.
    """
    if op.pieces is None:
        raise ValueError(f"op {op.name} declares no pieces; judge its outputs whole")
    if len(outputs) != len(op.outputs):
        return Outcome.WRONG_SHAPE, f"returned {len(outputs)} values, expected {len(op.outputs)}", ()
    contract, arguments = op.full_contract(case, declared), op.inputs(case, Bits(case))
    try:
        count = sum(1 for _ in op.pieces(arguments, outputs))
    except IndexError as error:
        return Outcome.WRONG_SHAPE, f"an output has too few rows: {error}", ()
    rows, found = [0] * len(outputs), list[Comparison]()
    for given, piece in op.pieces(arguments, outputs):
        right = expectation(op, case, contract, given)
        if (fault := malformed(right, piece)) is not None:
            return *fault, ()
        comparisons = right.judge(piece, alpha=ALPHA / count)
        # A piece is judged once; what limits remember of it would add up to the whole.
        limits.cache_clear()
        if wrong := [describe(c) for c in comparisons if not c.passed]:
            return Outcome.WRONG, f"{'; '.join(wrong)}, in one of {count} pieces", tuple(comparisons)
        found += comparisons
        rows = [seen + len(part) for seen, part in zip(rows, piece, strict=True)]
    for name, output, seen in zip(op.outputs, outputs, rows, strict=True):
        if len(output) != seen:
            return Outcome.WRONG_SHAPE, f"{name} has {len(output)} rows, expected {seen}", ()
    return Outcome.PASS, "", tuple(found)
