"""The tables of docs/performance.md, made from recorded comparisons and from nothing else.

``python -m minimax_m2.harness.performance ci/results/pairs-20261122.jsonl`` prints them; a test holds the page to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from minimax_m2.harness.paired import BUSY, PairRecord, read_pairs
from minimax_m2.harness.record import Record

HEADER = (
    "| op | case | ours us | peer | peer us | ratio | 95 % interval | of roof |",
    "|---|---|---|---|---|---|---|---|",
)
# What two runs of one kernel differ by.
SLACK = 0.03


def performance_table(pairs: Sequence[PairRecord]) -> str:
    """Markdown: one row a comparison, by op; where a side is wrong or the machine was busy, that instead of a ratio.

    Where ratios were asked for, a last column says which of them were reached.
    """
    asked = any(pair.at_least is not None for pair in pairs)
    rows: list[str] = [f"{HEADER[0]} asked |", f"{HEADER[1]}---|"] if asked else list(HEADER)
    for pair in sorted(pairs, key=lambda p: (p.a.op, p.b.provider)):
        rows.append(_row(pair) + (f" {reached(pair)} |" if asked else ""))
    return "\n".join(rows)


def reached(pair: PairRecord) -> str:
    """The ratio that was asked for, and whether it was reached but for what runs differ by."""
    if pair.at_least is None:
        return ""
    right = pair.a.passed and pair.b.passed
    return f"{pair.at_least:g} {'met' if right and pair.ratio >= pair.at_least * (1 - SLACK) else 'missed'}"


def caption(pairs: Sequence[PairRecord], path: Path) -> str:
    """The line above the table: that it is measured, from which record, when and where."""
    machine, dates = pairs[0].a.machine, sorted({pair.date for pair in pairs})
    place = f"{machine['processor']}, {machine['threads']} threads"
    if pairs[0].a.device == "gpu":
        place = f"{machine['accelerator']}, driver {machine['driver']}"
    return (
        f"*measured* ({path.parent.parent.name}/{path.parent.name}/{path.name}, {', '.join(dates)}, "
        f"{place}, torch {machine['torch']})"
    )


def _row(pair: PairRecord) -> str:
    wrong = [record for record in (pair.a, pair.b) if not record.passed]
    peer = " ".join(filter(None, (pair.b.provider, pair.b.variant)))
    cells = [pair.a.op, _case(pair), _us(pair.a), peer, _us(pair.b)]
    if wrong:
        cells += [f"{wrong[0].provider} is {wrong[0].outcome}", "", ""]
    elif pair.others > BUSY and pair.a.device != "gpu":
        cells += ["busy machine", f"{pair.low:.2f} to {pair.high:.2f}", ""]
    else:
        share = "" if pair.a.timing is None else f"{100 * pair.a.timing.share:.0f} %"
        cells += [f"{pair.ratio:.2f}", f"{pair.low:.2f} to {pair.high:.2f}", share]
    return f"| {' | '.join(cells)} |"


def _case(pair: PairRecord) -> str:
    shape = "" if pair.a.timing is None else pair.a.timing.shape
    return " ".join([shape, *(f"{name}={value}" for name, value in pair.setting.items())])


def _us(record: Record) -> str:
    return "" if record.timing is None else f"{record.timing.median_us:.4g}"


def main() -> None:
    (name,) = sys.argv[1:]
    pairs = read_pairs(Path(name))
    sys.stdout.write(f"{caption(pairs, Path(name).resolve())}\n{performance_table(pairs)}\n")


if __name__ == "__main__":
    main()
