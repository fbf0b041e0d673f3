"""Records as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from minimax_m2.harness.case import Case
from minimax_m2.harness.coverage import Coverage, coverage
from minimax_m2.harness.exhaustive import BINS, Histogram
from minimax_m2.harness.models import ModelRecord
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.record import Record
from minimax_m2.harness.summary import Line, lines
from minimax_m2.harness.table import microseconds, number
from minimax_m2.harness.verdict import Outcome

# As many cases as the conformance suite judges: there every kind of corruption of every op applies somewhere.
ENOUGH = 60


def page(
    records: Sequence[Record], *, absent: Iterable[str], models: Sequence[ModelRecord] = (),
    sources: Mapping[str, str] | None = None, every: Sequence[Histogram] = (),
) -> str:  # fmt: skip
    """HTML of a run, with providers' files by name in ``sources``, and with what was asked of every number.

    Every text from data is escaped; nothing is fetched.

    Raises ValueError for a run without records: a page of nothing would look like a pass.
    """
    if not records:
        raise ValueError("records is empty; a page needs at least one")
    template = Path(__file__).with_name("report.html").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folded = lines(records)
    failed = [line for line in folded if line.failed]
    return environment.from_string(template).render(
        run=records[0].run,
        machine=records[0].machine,
        failed=bool(failed) or any(row.score is None for row in models) or any(one.wrong for one in every),
        headline=headline(folded),
        rows=_rows(folded),
        coverage=covered(records),
        every=every,
        bins=[f"{end:g}" for end in BINS],
        models=[row.cells for row in models],
        failures=[failure(line.failed[0], (sources or {}).get(line.cell.provider, "")) for line in failed],
        absent=list(absent),
    )


def covered(records: Iterable[Record]) -> list[Coverage]:
    """What the cases of a run hold of each op's factors."""
    cases = dict.fromkeys(Case(record.case) for record in records if record.case and record.op in all_ops())
    return [coverage(op, [case for case in cases if case.op == name]) for name, op in all_ops().items()
            if any(case.op == name for case in cases)]  # fmt: skip


def headline(folded: Sequence[Line]) -> str:
    """The verdict of a run in one sentence."""
    wrong = [line.cell.id for line in folded if any(r.outcome != Outcome.VACUOUS.value for r in line.failed)]
    vacuous = [line.cell.id for line in folded if line.failed and line.cell.id not in wrong]
    silent = [line.cell.id for line in folded if not line.judged]
    judged = sum(len(line.judged) for line in folded)
    if wrong or vacuous:
        told = ((wrong, "are wrong"), (vacuous, "could not tell right from wrong"))
        return "; ".join(f"{len(some)} of {len(folded)} cells {what}: {_some(some)}" for some, what in told if some)
    if silent:
        passing = len(folded) - len(silent)
        return f"{passing} of {len(folded)} cells pass on {judged} judged cases; not measured: {_some(silent)}"
    return f"all {len(folded)} cells pass on {judged} judged cases"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def failure(record: Record, provider: str = "") -> str:
    """What was wrong with one case, and how to see it again."""
    cell = "/".join(part for part in (record.op, record.device, record.provider, record.variant) if part)
    which = f"case {record.case_id}" if record.case else "all cases"
    return "\n".join([f"{cell}  {which}: {record.outcome}", *record.evidence, replay(record, provider)])


def replay(record: Record, provider: str = "") -> str:
    """The command that judges a recorded case again, or more cases where none was enough."""
    option = f" --provider {provider}" if provider else f" --with {record.provider}"
    variant = f" --variant {record.variant}" if record.variant else ""
    if not record.case:
        return f"m2check run --op {record.op} --cases {ENOUGH}{option}{variant}"
    return f"m2check repro {record.case_id}{option}{variant}"


def _rows(folded: Iterable[Line]) -> list[dict[str, Any]]:
    rows, previous = [], ""
    for line in folded:
        prefill = line.timing("prefill")
        rows.append(
            {
                "first": line.cell.op != previous,
                "op": line.cell.op,
                "provider": line.cell.provider,
                "variant": line.cell.variant,
                "verdict": line.verdict,
                "cases": len(line.judged),
                "width": round(100 * min(1.0, line.worst or 0.0)),
                "worst": number(line.worst),
                "mean": number(line.mean),
                "decode": microseconds(line.timing("decode")),
                "prefill": microseconds(prefill),
                "roof": "" if prefill is None else f"{100 * prefill.share:.0f} %",
                "slow": line.is_slow,
                "determinism": line.determinism,
            }
        )
        previous = line.cell.op
    return rows
