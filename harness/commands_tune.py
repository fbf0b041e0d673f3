"""``m2check tune``: measure the code paths of our GPU ops on this device, and keep what is right and faster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from minimax_m2.harness.devices import absence
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import gpu_choices, ours
from minimax_m2.harness.tuning import SHAPES, WORTH, Candidate, best, cases_of, measured
from minimax_m2.harness.wrong_use import WrongUse, asked

WRONG, NOTHING_MEASURED = 1, 5


def tune(
    op: Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")] = None,
    out: Annotated[Path | None, typer.Option(help="the file to write; the cache of built kernels without it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print candidates instead of a table")] = False,
) -> None:
    """Judge and time every code path of our GPU ops, and write the choices that calls on this device will take."""
    from minimax_m2.harness.cli import console, errors

    with asked():
        chosen = [find_op(name) for name in op or SHAPES]
        if unknown := [each.name for each in chosen if each.name not in SHAPES]:
            raise WrongUse(f"op {unknown[0]!r} has one code path only; tuned are {', '.join(SHAPES)}")
    if (reason := absence("gpu")) is not None:
        errors.print(f"gpu: not here ({reason}); nothing was measured", markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_MEASURED)
    import torch

    provider, found = ours("gpu"), list[list[Candidate]]()
    for each in chosen:
        for fields in SHAPES[each.name]:
            errors.print(f"{each.name} {' '.join(f'{k}={v}' for k, v in fields.items())}", markup=False)
            found.append(measured(each, cases_of(each, fields), provider))
    device = torch.cuda.get_device_name()
    file = out or gpu_choices().place(device)
    gpu_choices().write(file, device, chosen_paths(found))
    if as_json:
        typer.echo(json.dumps([asdict(candidate) for bucket in found for candidate in bucket]))
    else:
        console.print(table(found))
    wrong = [candidate for bucket in found for candidate in bucket if candidate.wrong]
    verdict = f"{len(found)} buckets, {len(wrong)} paths wrong" + (f": {escape(wrong[0].wrong)}" if wrong else "")
    setting = gpu_choices().SETTING
    console.print(f"{verdict}\nwritten to {file}; a call reads it at its first use of a path\n{setting}=off ignores it")
    raise typer.Exit(WRONG if wrong else 0)


def chosen_paths(found: Sequence[Sequence[Candidate]]) -> dict[str, dict[str, str]]:
    """Paths by op and bucket where another than the op's own is worth it; a wrong path is never among them."""
    choices: dict[str, dict[str, str]] = {}
    for bucket in found:
        winner = best(bucket)
        if winner is not None and winner is not bucket[0]:
            choices.setdefault(winner.op, {})[winner.bucket] = winner.path
    return choices


def table(found: Sequence[Sequence[Candidate]]) -> Table:
    """A line a bucket: the op's own path, the fastest right one, and whether it is chosen."""
    shown = Table("op", "bucket", "own path", "us", "fastest right path", "us", "chosen", box=None)
    for bucket in found:
        own, winner = bucket[0], best(bucket)
        right = [c for c in bucket if c.us is not None]
        fastest = min(right, key=lambda c: c.us or 0.0) if right else None
        shown.add_row(
            own.op, own.bucket, own.path, "wrong" if own.us is None else f"{own.us:.2f}",
            "none" if fastest is None else fastest.path, "" if fastest is None else f"{fastest.us:.2f}",
            "nothing is right" if winner is None else "own" if winner is own else f"yes, by over {WORTH - 1:.0%}",
        )  # fmt: skip
    return shown
