"""``m2check doctor|generate``: what this machine can judge, and the cases that it would be judged on."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from minimax_m2.harness import doctor as examination
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.wrong_use import asked


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False) -> None:
    """Say what this machine can judge and how each dispatch predicate decides."""
    from minimax_m2.harness.cli import console

    found = list(examination.examine())
    if as_json:
        typer.echo(json.dumps([{"what": s.what, "found": s.found, "remedy": s.remedy} for s in found]))
        return
    for symptom in found:
        console.print(f"{symptom.what:18} {symptom.found}" + (f"  -> {symptom.remedy}" if symptom.remedy else ""))


def generate(
    op: Annotated[str | None, typer.Option(help="the op to draw cases of")] = None,
    count: Annotated[int, typer.Option(min=1)] = 10,
    start: Annotated[int, typer.Option(min=0, help="skip so many cases of the sample")] = 0,
    model: Annotated[str | None, typer.Option(help="instead of cases, what tiny-m2 makes of a text: its ids")] = None,
    device: Annotated[str, typer.Option(help="with --model: cpu or gpu")] = "cpu",
    tokens: Annotated[int, typer.Option(min=1, help="with --model: how many tokens")] = 32,
) -> None:
    """Print sampled cases of an op, one JSON object a line: they build the same tensors on every device."""
    from minimax_m2.harness.commands_wide import generate_text

    if model is not None and op is None:
        generate_text(model, device, tokens)
    with asked():
        if op is None or model is not None:
            raise ValueError("generate takes one of --op OP and --model MODEL")
        drawn = find_op(op)
    for case in sampled(drawn, count, start=start):
        typer.echo(case.json)
