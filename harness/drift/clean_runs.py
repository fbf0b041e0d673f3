"""Runs of right providers, in which lock-step must flag nobody: on other text each time, in two formats of the weights.

    python -m minimax_m2.harness.drift.clean_runs ci/results/drift-clean-DATE.jsonl [plain ours transformers]

appends what is missing of 34 windows x three providers x two formats; what was ended goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.lockstep import ABSENT, ranked
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Trajectory
from minimax_m2.harness.provenance import machine
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.providers.transformers_ops import transformers_ops

PROVIDERS: dict[str, Callable[[], Provider]] = {"plain": plain, "transformers": transformers_ops, "ours": ours}
FORMATS = ("bfloat16", "e4m3")
WINDOWS, TOKENS = 34, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRun:
    """One run of a right provider.

    judged  steps judged, each in prefill and in decode
    wrong   places that were flagged, which is a false alarm
    worst   the largest share of a budget, and where
    """

    provider: str
    weights: str
    window: int
    judged: int
    wrong: tuple[str, ...]
    worst: float
    where: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.provider, self.weights, self.window

    @property
    def json(self) -> str:
        where = {name: machine()[name] for name in ("processor", "python", "torch", "commit")}
        return json.dumps(asdict(self) | {"machine": where})


def clean_run(name: str, weights: str, window: int) -> CleanRun:
    """Judge every step of a provider in its best variant on one window of tiny-m2's text."""
    provider = PROVIDERS[name]()
    candidate = Candidate(provider=provider, variant=provider.variants[-1])
    subject = checkpoint_subject(None, None, length=TOKENS * (window + 1), keep_quantized=weights == "e4m3")
    subject = replace(subject, ids=subject.ids[-TOKENS:])
    cells = list(Trajectory(subject, offered=candidate.offered()).cells(candidate))
    worst = ranked(cells)[0]
    return CleanRun(
        provider=name,
        weights=weights,
        window=window,
        judged=sum(cell.outcome != ABSENT for cell in cells),
        wrong=tuple(f"layer {cell.layer}, {cell.step}, {cell.phase}" for cell in cells if cell.is_wrong),
        worst=worst.used,
        where=f"layer {worst.layer}, {worst.step}, {worst.phase}: {worst.test}",
    )


def read(path: Path) -> list[CleanRun]:
    """The runs of a record, in its order."""
    names, found = [field.name for field in fields(CleanRun)], []
    for line in map(json.loads, path.read_text().splitlines()):
        kept: dict[str, Any] = {name: tuple(line[name]) if name == "wrong" else line[name] for name in names}
        found.append(CleanRun(**kept))
    return found


def missing(done: Iterable[CleanRun], names: Iterable[str] = PROVIDERS) -> Iterator[tuple[str, str, int]]:
    """What is not yet run, one window of all after the other."""
    known = {run.key for run in done}
    wanted = ((name, weights, window) for window, name, weights in product(range(WINDOWS), names, FORMATS))
    return (key for key in wanted if key not in known)


def table(runs: Iterable[CleanRun]) -> str:
    """The runs as Markdown, a row a provider and format."""
    groups: dict[tuple[str, str], list[CleanRun]] = {}
    for run in runs:
        groups.setdefault((run.provider, run.weights), []).append(run)
    rows = [
        f"| {name} | {weights} | {len(group)} | {sum(run.judged for run in group):,} | "
        f"{sum(bool(run.wrong) for run in group)} | {max(run.worst for run in group):.2f} |"
        for (name, weights), group in sorted(groups.items())
    ]
    head = "| provider | weights | runs | steps judged | runs flagged | largest share of a budget |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def main(path: Path, names: Sequence[str]) -> int:
    """Append the runs that are missing and print the table; 1 where one was flagged, 2 for an unknown provider."""
    if unknown := [name for name in names if name not in PROVIDERS]:
        sys.stderr.write(f"provider {unknown[0]!r} is none of {', '.join(PROVIDERS)}\n")
        return 2
    with path.open("a") as record:
        for name, weights, window in missing(read(path), names or PROVIDERS):
            run = clean_run(name, weights, window)
            record.write(run.json + "\n")
            record.flush()
            if run.wrong:
                sys.stderr.write(f"{name}, {weights}, window {window}: {'; '.join(run.wrong)}\n")
    runs = read(path)
    sys.stdout.write(table(runs) + "\n")
    return int(any(run.wrong for run in runs))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
