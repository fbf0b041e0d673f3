"""``m2check bisect commit`` and ``m2check predicate``: which commit, and the question that ``git bisect run`` asks."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from minimax_m2.harness.drift.commits import Abort, Culprit, Outcome, Test, search
from minimax_m2.harness.drift.questions import LATENCY, UTIL, fails, measure_command, nearer, repro_command, slow
from minimax_m2.harness.drift.sequential import Ends, EndsAlike
from minimax_m2.harness.drift.worktrees import ABORTED, UNTESTABLE, Repository
from minimax_m2.harness.wrong_use import WrongUse, asked

UNKNOWN, NOT_COMPARABLE = 3, 4

ReproOption = Annotated[Path | None, typer.Option(help="a folder that m2check repro wrote")]
OpOption = Annotated[str, typer.Option(help="our kernel of this op, by --metric")]
MetricOption = Annotated[str, typer.Option(help="util (share of the budget) or latency")]
TestOption = Annotated[str, typer.Option(help="a command: 0 good, 125 cannot be tested, 128 stop, else bad")]
TimeOption = Annotated[str, typer.Option("--time", help="a command that prints seconds on its last line")]
BuildOption = Annotated[str, typer.Option(help="a command that builds a commit first")]


def commit(
    good: Annotated[str, typer.Option(help="a commit that is right")],
    bad: Annotated[str, typer.Option(help="a later one that is wrong")],
    repro: ReproOption = None,
    op: OpOption = "",
    metric: MetricOption = UTIL,
    test: TestOption = "",
    time_: TimeOption = "",
    build: BuildOption = "",
    repository: Annotated[Path, typer.Option(help="the checkout, ours or another engine's")] = Path(),
    budget: Annotated[float, typer.Option(min=0.1, help="minutes")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Find the commit that turned a step wrong or slow; each is built in a folder and with a cache of its own."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, console, finish, working

    refuse_other_than_one(repro=repro, op=op, test=test, time=time_)
    refuse_metric(metric)
    until = time.monotonic() + 60 * budget
    again = f"git -C {repository} bisect start {bad} {good}"
    with tempfile.TemporaryDirectory() as name, working() as bar:
        task = bar.add_task("laying out the ends", total=None)
        with Repository(repository, Path(name) / "commits", build=build) as checkout:
            with asked():
                line = checkout.between(good, bad)
                command = repro_command(repro, repository) if repro else test or time_ or measure_command(metric, op)
            try:
                question, differ = asking(checkout, command, line, timed=bool(time_) or metric == LATENCY,
                                          plain=bool(repro or test), until=until)  # fmt: skip

                def told(commit: str) -> Outcome:
                    if time.monotonic() > until:
                        raise Abort(f"the budget of {budget:g} minutes is spent")
                    bar.update(task, description=f"{len(line)} commits: {checkout.subject(commit)}")
                    return question(commit)

                found = search(line, told, ends_differ=differ)
            except (ValueError, EndsAlike) as error:
                finish(NOT_COMPARABLE, "good and bad do not differ in what was asked", str(error), again)
            except LookupError as error:
                finish(NOTHING_MEASURED, "nothing was measured", str(error), again)
            except Abort as error:
                finish(UNKNOWN, "the search did not end", str(error), again)
            names = {one: checkout.subject(one) for one in (*found.commits, *(c for c, _ in found.tested))}
            words = dict(checkout.told)
    if as_json:
        typer.echo(json.dumps({
            "commits": list(found.commits), "subjects": [names[c] for c in found.commits],
            "tested": [{"commit": c, "outcome": o.value, "told": words.get(c, "")} for c, o in found.tested],
        }))  # fmt: skip
    else:
        console.print(tested(found, names, words))
    first, last = names[found.commits[0]], names[found.commits[-1]]
    if found.is_one:
        finish(WRONG, f"first bad: {first}", f"{len(found.tested)} commits tested of {len(line)}",
               f"git -C {repository} show {found.commits[0][:12]}")  # fmt: skip
    told_range = f"first bad is one of {len(found.commits)} commits: {first} .. {last}"
    evidence = f"{len(found.commits) - 1} of them cannot be tested: {words.get(found.commits[0], '')}"
    finish(WRONG, told_range, evidence, f"git -C {repository} log {found.commits[0][:12]}~..{found.commits[-1][:12]}")


def refuse_other_than_one(**ways: object) -> None:
    """WrongUse where a question is asked in no way or in several."""
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        raise WrongUse(f"say one of {', '.join(f'--{name}' for name in ways)}; given: {', '.join(given) or 'none'}")


def refuse_metric(metric: str) -> None:
    """WrongUse for a metric that no kernel has."""
    if metric not in (UTIL, LATENCY):
        raise WrongUse(f"--metric {metric!r} is unknown; use {UTIL} or {LATENCY}")


def asking(
    checkout: Repository, command: str, line: list[str], *, timed: bool, plain: bool, until: float
) -> tuple[Test, bool]:
    """The question, and whether asking it has shown that the ends differ."""
    if plain:
        return fails(checkout, command), False
    if timed:
        return slow(checkout, command, line[0], line[-1], until=until)[0], True
    return nearer(checkout, command, line[0], line[-1]), True


def tested(found: Culprit, names: dict[str, str], words: dict[str, str]) -> Table:
    """Every commit that was tested, in order."""
    table = Table(title="commits", title_justify="left")
    for name in ("commit", "outcome", "said"):
        table.add_column(name, no_wrap=name == "outcome")
    for commit, outcome in found.tested:
        style = "red" if outcome is Outcome.BAD else "dim" if outcome is Outcome.UNTESTABLE else ""
        table.add_row(names[commit], outcome.value, words.get(commit, ""), style=style)
    return table


def predicate(
    repro: ReproOption = None,
    op: OpOption = "",
    metric: MetricOption = UTIL,
    test: TestOption = "",
    time_: TimeOption = "",
    good: Annotated[str, typer.Option(help="of a time: the commit that is fast")] = "",
    bad: Annotated[str, typer.Option(help="of a time: the commit that is slow")] = "",
    ends: Annotated[Path | None, typer.Option(help="of a time: where to keep what good and bad took")] = None,
    budget: Annotated[float, typer.Option(min=0.1, help="of a time: minutes")] = 60.0,
    limit: Annotated[float, typer.Option(help="with --op: a larger share of the budget is bad")] = 1.0,
    build: BuildOption = "",
    canary: Annotated[str, typer.Option(help="a command that fails where the machine itself is broken")] = "",
    repository: Annotated[Path, typer.Option(help="the checkout that is tested")] = Path(),
) -> None:
    """Ask one checkout, as git bisect run does: 0 good, 1 bad, 125 cannot be tested, 128 nothing can be here."""
    from minimax_m2.harness.cli import finish

    refuse_other_than_one(repro=repro, op=op, test=test, time=time_)
    refuse_metric(metric)
    again = "git bisect log"
    timed = time_ or (measure_command(LATENCY, op) if op and metric == LATENCY else "")
    if timed and not (good and bad):
        raise WrongUse("a time counts beside the ends' only: say --good and --bad, whose difference it is held to")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=repository, shell=True, capture_output=True, text=True)

    if canary and (done := run(canary)).returncode:
        finish(ABORTED, "nothing can be tested here", f"the canary ended in {done.returncode}", again)
    if build and (done := run(build)).returncode:
        finish(UNTESTABLE, "cannot be tested", f"does not build: {done.stderr.strip()[-200:]}", again)
    if timed:
        timed_verdict(timed, repository, (good, bad), build=build, ends=ends, until=time.monotonic() + 60 * budget)
    with asked():
        command = repro_command(repro, repository) if repro else test or measure_command(UTIL, op)
    done = run(command)
    if done.returncode == UNTESTABLE:
        finish(UNTESTABLE, "cannot be tested", done.stderr.strip()[-300:], again)
    if done.returncode < 0 or done.returncode >= ABORTED:
        finish(ABORTED, "nothing can be tested here", f"the test ended in {done.returncode}", again)
    is_bad = float(done.stdout.split()[-1]) > limit if op and done.returncode == 0 else done.returncode != 0
    verdict(is_bad, (done.stderr or done.stdout).strip()[-300:], again)


def timed_verdict(
    command: str, repository: Path, between: tuple[str, str], *, build: str, ends: Path | None, until: float
) -> NoReturn:
    """Whether the checkout's commit is as slow as the bad end: pairs with the good one until the test is sure.

    Both are laid out and built as ``bisect commit`` does it; 128 where the ends do not differ or the budget is spent.
    """
    from minimax_m2.harness.cli import finish

    again = "git bisect log"
    with tempfile.TemporaryDirectory() as name, Repository(repository, Path(name) / "commits", build=build) as checkout:
        with asked():
            good, bad, here = (checkout.git("rev-parse", "--verify", f"{n}^{{commit}}") for n in (*between, "HEAD"))
            known = read_ends(ends, good, bad) if ends is not None and ends.is_file() else None
        try:
            question, found = slow(checkout, command, good, bad, until=until, known=known)
            if ends is not None:
                ends.write_text(json.dumps(asdict(found) | {"good": good, "bad": bad}) + "\n")
            outcome = question(here)
        except (EndsAlike, LookupError, Abort) as error:
            finish(ABORTED, "nothing can be tested here", str(error), again)
        subject = checkout.subject(here)
    slower = f"the bad end takes {math.exp(found.seen):.3f} times as long as the good one"
    if outcome is Outcome.UNTESTABLE:
        finish(UNTESTABLE, "cannot be tested", f"{subject}: pairs do not decide, or it gives no time; {slower}", again)
    verdict(outcome is Outcome.BAD, f"{subject}; {slower}", again)


def read_ends(path: Path, good: str, bad: str) -> Ends:
    """What an earlier call kept. Raises ValueError for a file of other ends, or of something else."""
    try:
        found = json.loads(path.read_text())
        kept = (found.pop("good"), found.pop("bad"))
        ends = Ends(**found)
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no ends that predicate kept: {error!r}; remove it") from error
    if kept != (good, bad):
        raise ValueError(f"{path} is of {kept[0][:12]} and {kept[1][:12]}; remove it, or name another by --ends")
    return ends


def verdict(is_bad: bool, evidence: str, again: str) -> NoReturn:
    """Good or bad."""
    from minimax_m2.harness.cli import WRONG, finish

    finish(WRONG if is_bad else 0, "bad" if is_bad else "good", evidence or "it said nothing", again)
