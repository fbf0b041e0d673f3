"""``m2check corpus add|replay``: keep failed cases, and judge kept ones; and what ``m2check repro --write`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from minimax_m2.harness import corpus
from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.options import FileOption, NameOption
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.repro import NotWritten, smallest, write
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.harness.worker import isolated
from minimax_m2.harness.wrong_use import WrongUse, asked

app = typer.Typer(help="Keep cases that somebody's kernel failed, and judge kernels on them.", no_args_is_help=True)

FolderOption = Annotated[Path | None, typer.Option(help="where cases are kept; default: the checkout's suites/corpus")]


def kept_in(folder: Path | None) -> Path:
    """A folder of cases; WrongUse where there is none."""
    found = folder or corpus.corpus_dir()
    if found is None or not found.is_dir():
        raise WrongUse(
            f"no folder of cases at {folder or 'suites/corpus'}: run from a checkout, or name one by --folder"
        )
    return found


@app.command()
def add(
    case: Annotated[str, typer.Argument(help="a case's JSON, or the id of a recorded one")],
    provider: FileOption = None,
    with_: NameOption = None,
    variant: Annotated[str, typer.Option(help="the code path that fails")] = "",
    shrink: Annotated[bool, typer.Option("--shrink/--no-shrink", help="make the case small first")] = True,
    folder: FolderOption = None,
) -> None:
    """Judge a case on one provider and, where it fails, keep it for every later run."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, case_of, chosen, finish

    found, where = case_of(case), kept_in(folder)
    providers = apart(chosen(provider, with_)) if provider or with_ else []
    if len(providers) != 1:
        raise WrongUse("name the one provider that fails: --provider FILE or --with NAME")
    (failing,) = providers
    try:
        verdict = smallest(found, failing, variant or failing.variants_of(found.op)[-1], judge, seconds=30 * shrink)
    except NotWritten as error:
        finish(NOTHING_MEASURED, "nothing was kept", str(error), f"m2check repro '{found.json}'")
    with asked():
        path = corpus.save(corpus.Known.of(verdict, torch=torch.__version__), where)
    finish(0, f"kept {path.name}", verdict.evidence[0], f"m2check corpus replay --op {found.op}")


@app.command()
def replay(
    op: Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")] = None,
    provider: FileOption = None,
    with_: NameOption = None,
    folder: FolderOption = None,
) -> None:
    """Judge providers on every kept case."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, chosen, console, finish

    with asked():
        kept = [Case(k.case) for k in corpus.all_known(kept_in(folder))]
        wanted = [case for case in kept if not op or case.op in [find_op(name).name for name in op]]
    providers = chosen(provider, with_)
    verdicts = [
        (judge(case, p, variant), p)
        for case in wanted
        for p in providers
        if p.offers(case.op)
        for variant in p.variants_of(case.op)
    ]
    judged = [(v, p) for v, p in verdicts if v.outcome is not Outcome.UNSUPPORTED]
    wrong = [(v, p) for v, p in judged if not v.passed]
    for verdict, owner in wrong:
        console.print(verdict.explain(owner.source), markup=False)
    if not judged:
        finish(NOTHING_MEASURED, "nothing was measured", f"{len(wanted)} cases, none offered", "m2check list")
    if wrong:
        first, owner = wrong[0]
        finish(WRONG, f"{len(wrong)} of {len(judged)} calls are wrong", first.evidence[0], first.replay(owner.source))
    finish(0, f"all {len(judged)} calls on {len(wanted)} kept cases are right", f"{kept_in(folder)}", "m2check run")


def apart(providers: list[Provider]) -> list[Provider]:
    """Files in processes of their own: a case that is being shrunk may do what the whole one did not."""
    return [isolated(p.source, name=p.name) if p.source.endswith(".py") else p for p in providers]


def write_smallest(
    case: Case, provider: Provider, variant: str, folder: Path, *, seconds: float = 30.0
) -> tuple[str, Verdict | None]:
    """Shrink a failure for so long, find simpler values for as long, at most 20 s, and write its script.

    Returns what came of it in a sentence, and the verdict on the smallest case.
    """
    (own,) = apart([provider])
    try:
        verdict = smallest(case, own, variant, judge, seconds=seconds)
    except NotWritten as error:
        return f"no script: {error}", None
    try:
        return f"wrote {write(verdict, own, folder, seconds=min(seconds, 20.0))}", verdict
    except NotWritten as error:
        return f"no script: {error}; the smallest case is {verdict.case.json}", verdict
