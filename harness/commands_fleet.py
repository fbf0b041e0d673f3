"""What ``--executor ray`` does for ``m2check run`` and ``score``: the same job, done by many machines, written here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from minimax_m2.harness.fleet import Done, Fleet
from minimax_m2.harness.hands import Job, RunJob, ScoreJob, failures_of
from minimax_m2.harness.models import read_models
from minimax_m2.harness.record import read
from minimax_m2.harness.score_plan import Asked, Score
from minimax_m2.harness.wrong_use import asked


@contextmanager
def joined_fleet(address: str, resources: Sequence[str]) -> Iterator[Fleet]:
    """A cluster, left again whatever happens."""
    with asked():
        fleet = Fleet(address, resources)
    try:
        yield fleet
    finally:
        fleet.close()


def told_by(fleet: Fleet, job: Job) -> Iterator[Done]:
    """What comes of a job, unit by unit, behind a progress line."""
    from minimax_m2.harness.cli import working

    with working() as bar:
        task = bar.add_task(f"asking {fleet.hands} hands", total=1.0)
        yield from fleet.spread(job, progress=lambda text, share: bar.update(task, description=text, completed=share))


def run_on_fleet(
    files: Sequence[Path], names: Sequence[str], ops: Sequence[str], variants: Sequence[str], *, count: int,
    times: bool, models: bool, address: str, resources: Sequence[str], as_json: bool,
) -> NoReturn:  # fmt: skip
    """Judge every cell that some machine has, write its records here, and exit with the verdict."""
    # Here, because cli registers these commands.
    from minimax_m2.harness.cli import NOTHING_MEASURED, RUNS, finish, told
    from minimax_m2.harness.commands_run import conclude, show
    from minimax_m2.harness.first_failures import known_failures
    from minimax_m2.harness.run import new_log

    with asked():
        sources = {path.stem: path.read_text() for path in files}
    hosts = set[str]()
    with joined_fleet(address, resources) as fleet:
        label, log = new_log(RUNS)
        job = RunJob(
            label=label, files=sources, names=tuple(names), ops=tuple(ops), variants=tuple(variants), count=count,
            times=times, models=models and not ops and not variants, failures=failures_of(known_failures(RUNS, told)),
            hands=fleet.hands,
        )  # fmt: skip
        with log:
            for done in told_by(fleet, job):
                hosts.add(done.host)
                for line in done.lines:
                    log.append(line)
    path = RUNS / f"{label}.jsonl"
    records, scored = read(path), read_models(path)
    if not records:
        finish(NOTHING_MEASURED, "nothing was measured", "no machine of the fleet has a cell of these", "ray status")
    show(records, scored, as_json)
    told(f"judged by {len(hosts)} hosts: {', '.join(sorted(hosts))}")
    conclude(records, path, sources={file.stem: str(file) for file in files}, whole=False, models=scored)


def score_on_fleet(wanted: Asked, *, address: str, resources: Sequence[str]) -> Score:
    """A score whose wrong providers were judged by many machines."""
    found = Score(wanted)
    with joined_fleet(address, resources) as fleet:
        for done in told_by(fleet, ScoreJob(asked=wanted)):
            for line in done.lines:
                found.enter(json.loads(line))
    return found
