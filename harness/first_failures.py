"""What a run does about its failures: the first of each cell is made small, written as a script, and kept.

A small case is kept in ``runs/corpus``: every later run in that folder judges it first, on every device.
``m2check corpus add`` keeps it for everybody who has the checkout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from minimax_m2.harness import corpus
from minimax_m2.harness.case import Case
from minimax_m2.harness.commands_corpus import write_smallest
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Record
from minimax_m2.harness.report import replay
from minimax_m2.harness.summary import lines
from minimax_m2.harness.verdict import Outcome

KEPT = "corpus"
# Below this a script is not even tried: to write it one process starts, which imports torch.
LEAST_SECONDS = 2.0


def first_failures(records: Iterable[Record]) -> list[Record]:
    """The first failed case of each cell; a verdict on the whole cell is of no case."""
    found = ([record for record in line.failed if record.case] for line in lines(records))
    return [failed[0] for failed in found if failed]


def made_small(
    records: Iterable[Record], providers: Iterable[Provider], folder: Path, *, seconds: float,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:  # fmt: skip
    """Shrink each cell's first failure, ``seconds`` for all, and say of each what came of it.

    Cells take their share of what is left. What no time is left for is told with the command that does it.
    """
    known = {(p.name, p.device): p for p in providers}
    failed, until = first_failures(records), time.monotonic() + seconds
    for position, record in enumerate(failed):
        left = (until - time.monotonic()) / (len(failed) - position)
        provider = known[record.provider, record.device]
        cell = "/".join(part for part in (record.op, record.device, record.provider, record.variant) if part)
        if left < LEAST_SECONDS or record.outcome == Outcome.TIMED_OUT.value:
            yield f"{cell}: not shrunk; {replay(record, provider.source)} --write {folder}"
            continue
        progress(f"shrinking the first failure of {cell}")
        # Shrinking may take half, finding simpler values the other; what is under way is finished.
        said, verdict = write_smallest(Case(record.case), provider, record.variant, folder, seconds=left / 2)
        if verdict is not None:
            kept = folder / KEPT
            kept.mkdir(exist_ok=True)
            corpus.save(corpus.Known.of(verdict, torch=torch.__version__), kept)
        yield f"{cell}: {said}"


def known_failures(folder: Path, told: Callable[[str], None]) -> dict[str, list[Case]]:
    """The checkout's kept cases and those that runs kept in ``folder``, by op.

    A case that a run kept and that its op no longer builds is told, and left out.
    """
    found = {op: list(cases) for op, cases in corpus.known_cases().items()}
    for path in _json_files(folder / KEPT):
        try:
            case = Case(corpus.load(path).case)
        except ValueError as error:
            told(f"left out: {error}")
            continue
        mine = found.setdefault(case.op, [])
        mine += [] if case in mine else [case]
    return found


def _json_files(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob(f"*{corpus.SUFFIX}")) if folder.is_dir() else []
