"""Judge what timed calls returned, by some of their rows where judging all of them would take minutes.

A kernel that is fast at MiniMax-M2's widths and many tokens returns more than a reference in float64 can follow. Rows
are made each for itself: those that are judged are spread over all of them, and every row must have been written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.expectation import Outputs, expectation
from minimax_m2.harness.judge import malformed
from minimax_m2.harness.op import Declared, Op
from minimax_m2.harness.verdict import Outcome, describe

# Of so many rows all are judged; of more, so many, and fewer where a row takes many operations.
FEWEST, MOST, FLOPS = 4, 64, 2e9


def chosen_rows(op: Op, case: Case, arguments: Mapping[str, Any]) -> Tensor | None:
    """Rows to judge, the first and the last among them; None where all are, or where they hang on each other."""
    if op.rows is None or arguments.get("num_valid") is not None:
        return None
    tokens = tokens_of(op, case, arguments)
    if tokens <= FEWEST:
        return None
    count = max(FEWEST, min(MOST, int(FLOPS * tokens / max(1, op.cost(case).flops))))
    return None if count >= tokens else torch.arange(count) * (tokens - 1) // (count - 1)


def tokens_of(op: Op, case: Case, arguments: Mapping[str, Any]) -> int:
    """Rows of a case: its tokens, or those of what is looked at first where lengths decide (attention)."""
    return case.number("T") if "T" in case else len(arguments[op.budgeted[0]])


def judged(
    op: Op, case: Case, declared: Declared, arguments: dict[str, Any], outputs: Outputs
) -> tuple[Outcome, str, Sequence[Comparison]]:
    """Outcome, evidence and comparisons of one call's outputs, under what its provider declares for the case.

    The reference is computed where the arguments lie.
    """
    rows, contract = chosen_rows(op, case, arguments), op.full_contract(case, declared)
    place = device_of(arguments)
    if rows is not None:
        if fault := shapeless(tokens_of(op, case, arguments), outputs) or unwritten(outputs):
            return *fault, ()
        assert op.rows is not None, "rows are chosen of ops that have them"
        arguments = op.rows(arguments, rows.to(place))
        case = case.but(T=len(rows)) if "T" in case else case
        outputs = tuple(output[rows.to(output.device)] for output in outputs)
    # What the budget's rules make anew lies beside the arguments.
    with torch.device(place):
        right = expectation(op, case, contract, arguments)
        fault = malformed(right, outputs)
        found = [] if fault else right.judge(outputs)
    if fault:
        return *fault, ()
    wrong = [describe(c) for c in found if not c.passed]
    told = "" if rows is None else f" of {len(rows)} rows judged"
    return (Outcome.WRONG, "; ".join(wrong) + told, found) if wrong else (Outcome.PASS, "", found)


def device_of(arguments: Mapping[str, Any]) -> torch.device:
    """Where the tensors among the arguments lie."""
    return next((value.device for value in arguments.values() if isinstance(value, Tensor)), torch.device("cpu"))


def shapeless(tokens: int, outputs: Outputs) -> tuple[Outcome, str] | None:
    """Say which output has not one row for each token."""
    for place, output in enumerate(outputs):
        if not isinstance(output, Tensor) or output.ndim == 0 or output.shape[0] != tokens:
            return Outcome.WRONG_SHAPE, f"output {place} has not {tokens} rows"
    return None


def unwritten(outputs: Outputs) -> tuple[Outcome, str] | None:
    """Say which row still holds the bytes 0xFF everywhere: the memory was filled with them before the call."""
    for place, output in enumerate(outputs):
        rows = output.contiguous().reshape(output.shape[0], -1).view(torch.uint8)
        left = (rows == 0xFF).all(1).nonzero()
        if len(left):
            return Outcome.WRONG, f"row {int(left[0])} of output {place} was not written, of {len(left)} such rows"
    return None
