"""What is asked of a commit: does it fail, is its number nearer to the bad end's, is it as slow as the bad end."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from minimax_m2.harness.drift.commits import Abort, Outcome, Test
from minimax_m2.harness.drift.sequential import Ends, is_slow, measured_ends
from minimax_m2.harness.drift.worktrees import Repository

MEASURE = Path(__file__).with_name("measure_script.py")
UTIL, LATENCY = "util", "latency"


def repro_command(folder: Path, repository: Path) -> str:
    """Run a written step; a provider's file of the repository is taken from the commit that is tested.

    Raises ValueError where the folder is none that ``m2check repro`` wrote.
    """
    script, meta = folder / "repro.py", folder / "meta.json"
    if not script.is_file() or not meta.is_file():
        raise ValueError(f"{folder} holds no repro.py and meta.json; `m2check repro RUN.drift.json` writes them")
    file = json.loads(meta.read_text())["provider"]["file"]
    words = ["python", str(script.resolve())]
    if file and Path(file).is_relative_to(repository.resolve()):
        words.append(str(Path(file).relative_to(repository.resolve())))
    return shlex.join(words)


def measure_command(metric: str, op: str) -> str:
    """Print one number of our kernel of an op."""
    # -P: beside the script lies a bisect.py, which would stand before Python's own.
    return shlex.join(["python", "-P", str(MEASURE), metric, op])


def fails(repository: Repository, command: str) -> Test:
    """Whether a command says so."""
    return lambda commit: repository.test(commit, command)


def nearer(repository: Repository, command: str, good: str, bad: str) -> Test:
    """Whether a commit's number is nearer to the bad end's. Raises ValueError where the ends' numbers are equal."""
    ends = [repository.number(commit, command) for commit in (good, bad)]
    if ends[0] is None or ends[1] is None:
        raise ValueError(f"{command!r} gives no number for {'good' if ends[0] is None else 'bad'}")
    low, high = ends[0], ends[1]
    if not low < high:
        raise ValueError(f"the good end has {low:.6g}, the bad end {high:.6g}: the bad one is not worse")

    def test(commit: str) -> Outcome:
        found = repository.number(commit, command)
        if found is None:
            return Outcome.UNTESTABLE
        repository.told[commit] = f"{found:.6g}"
        to_good, to_bad = (_apart(found, end) for end in (low, high))
        return Outcome.BAD if to_bad < to_good else Outcome.GOOD

    return test


def _apart(a: float, b: float) -> float:
    if a == b:
        return 0.0
    return abs(math.log(a / b)) if a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b) else math.inf


def slow(
    repository: Repository, command: str, good: str, bad: str, *, until: float, known: Ends | None = None
) -> tuple[Test, Ends]:
    """Whether a commit is as slow as the bad end, by pairs with the good one. Raises EndsAlike.

    ``known`` is what an earlier visit to this machine found of the ends, which are then not timed again.
    """

    def pair(commit: str) -> Callable[[], float]:
        turn = iter(range(1_000_000))

        def once() -> float:
            if time.monotonic() > until:
                raise Abort("the budget is spent")
            order = (good, commit) if next(turn) % 2 == 0 else (commit, good)
            times = {name: repository.number(name, command) for name in order}
            if any(t is None or t <= 0 for t in times.values()):
                raise LookupError(f"{commit[:12]} gives no time")
            return math.log((times[commit] or 0.0) / (times[good] or 1.0))

        return once

    ends = known or measured_ends(pair(bad))

    def test(commit: str) -> Outcome:
        try:
            decided = is_slow(pair(commit), ends)
        except LookupError:
            return Outcome.UNTESTABLE
        return Outcome.UNTESTABLE if decided is None else Outcome.BAD if decided else Outcome.GOOD

    return test, ends
