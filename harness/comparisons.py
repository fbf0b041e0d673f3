"""Compare ours with other engines on a list of cases, in one process: what is loaded and drawn once serves all of them.

``python -m minimax_m2.harness.comparisons LIST OUT.jsonl [SECONDS]``, where a line of LIST says what follows
``m2check compare ours``: a peer, ``--op``, ``--shape``, ``--set``, ``--at-least``. Each comparison is on disk when the
next begins. Ends in 1 where a side is wrong, in 5 where nothing was measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from minimax_m2.harness.case import Field
from minimax_m2.harness.contenders import Refused, Side, compared, device_for, roof_of, settings, shaped, side
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import Others, PairRecord
from minimax_m2.harness.peers import NotHere
from minimax_m2.harness.record import Log
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.worker import Ended

OURS = "ours"
WRONG, NOTHING_MEASURED = 1, 5
SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One line of a list: ``at_least`` is the ratio asked for, None where none is."""

    text: str
    peer: str
    op: str
    shape: str
    setting: dict[str, Field]
    at_least: float | None


def wanted(lines: Iterable[str]) -> list[Wanted]:
    """What a list asks for; ``#`` begins a comment. Raises ValueError for a line that is no comparison."""
    parser = argparse.ArgumentParser(prog="a line", add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("peer")
    parser.add_argument("--op", required=True)
    parser.add_argument("--shape", default="decode")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--at-least", type=float)
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        try:
            given, left = parser.parse_known_args(words)
        except (argparse.ArgumentError, SystemExit) as error:
            raise ValueError(f"line {line.strip()!r} is no comparison: {error}") from error
        if left:
            raise ValueError(f"line {line.strip()!r} holds {left[0]!r}, which is no option of a comparison")
        found.append(
            Wanted(
                text=" ".join(words), peer=given.peer, op=given.op, shape=given.shape, setting=settings(given.set),
                at_least=given.at_least,
            )
        )  # fmt: skip
    return found


def made(
    asked: Sequence[Wanted], seconds: float, tell: Callable[[str], None], *, roof: Callable[[str], Roof] | None = None
) -> Iterator[PairRecord]:
    """Every comparison of a list that can be made here; ``tell`` hears of each, and why one is left out."""
    measured = roof or (lambda device: roof_of(device, lambda text: None))
    with ExitStack() as stack:
        sides: dict[tuple[str, str], Side] = {}

        def chosen(name: str, device: str) -> Side:
            if (name, device) not in sides:
                sides[name, device] = stack.enter_context(side(name, own_process=device == "cpu", device=device))
            return sides[name, device]

        for one in asked:
            meanwhile, start = Others(), time.monotonic()
            try:
                device = device_for((OURS, one.peer))
                op = find_op(one.op)
                both = chosen(OURS, device), chosen(one.peer, device)
                case = shaped(op, one.shape, one.setting)
                found = compared(op, case, one.shape, one.setting, both, seconds, measured(device))
            except (NotHere, Refused, Ended) as error:
                tell(f"{one.text}: {error}")
                continue
            found = replace(found, others=round(meanwhile.cores(), 2), at_least=one.at_least)
            tell(f"{one.text}: {said(found)}, {time.monotonic() - start:.1f} s")
            yield found


def said(found: PairRecord) -> str:
    """A comparison in a line: a ratio where both sides are right, else who is not."""
    wrong = next((record for record in (found.a, found.b) if not record.passed), None)
    if wrong is not None:
        return f"{wrong.provider} is {wrong.outcome}: {wrong.evidence[0]}"
    times = [record.timing.median_us for record in (found.a, found.b) if record.timing is not None]
    return f"{found.ratio:.3g} ({found.low:.3g} to {found.high:.3g}), {times[0]:.4g} beside {times[-1]:.4g} us"


def main() -> int:
    listed, out, *rest = sys.argv[1:]
    asked = wanted(Path(listed).read_text().splitlines())
    records = []
    with Log(Path(out)) as log:
        for found in made(asked, float(rest[0]) if rest else SECONDS, print_line):
            log.append(found.json)
            records.append(found)
    if not records:
        return NOTHING_MEASURED
    return WRONG if any(not side.passed for found in records for side in (found.a, found.b)) else 0


def print_line(text: str) -> None:
    """To standard output, at once: a list takes minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
