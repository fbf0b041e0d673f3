"""The README's table of what is proven, made from a recorded run and from nothing else.

``python -m minimax_m2.harness.proven RUN.jsonl`` prints it; a test holds the README to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from minimax_m2.harness.record import Record, read
from minimax_m2.harness.summary import Line, lines
from minimax_m2.harness.table import microseconds, number

HEADER = (
    "| op | variants | cases | budget used, worst | decode us | prefill us |",
    "|---|---|---|---|---|---|",
)


def proven_table(records: Sequence[Record], *, provider: str = "ours") -> str:
    """Markdown: one row an op whose every variant passed; times are those of the last variant, its best.

    An op with a failing variant is named so.
    """
    folded = lines(records)
    rows = list(HEADER)
    for op in dict.fromkeys(line.cell.op for line in folded):
        mine = [line for line in folded if line.cell.op == op and line.cell.provider == provider]
        if mine:
            rows.append(_row(op, mine))
    return "\n".join(rows)


def _row(op: str, mine: list[Line]) -> str:
    failing = [line for line in mine if line.verdict != "pass"]
    if failing:
        return f"| {op} | {failing[0].cell.variant}: {failing[0].verdict} | | | | |"
    worst = max((line.worst for line in mine if line.worst is not None), default=None)
    best = mine[-1]
    cells = (
        op,
        ", ".join(line.cell.variant for line in mine),
        str(sum(len(line.judged) for line in mine)),
        number(worst),
        microseconds(best.timing("decode")),
        microseconds(best.timing("prefill")),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write(proven_table(read(Path(sys.argv[1]))) + "\n")
