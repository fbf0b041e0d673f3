"""``m2check score``: how many known bugs and planted defects the harness catches, and how often it cries wolf."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minimax_m2.harness.commands_fleet import score_on_fleet
from minimax_m2.harness.coverage import Coverage
from minimax_m2.harness.false_alarms import Tally
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.options import AddressOption, Executor, ExecutorOption, ResourceOption, ShardOption
from minimax_m2.harness.score import GENERIC, HELD_OUT, KERNELS, MUSEUM, Kill, rate
from minimax_m2.harness.score_plan import Asked, joined, measured, plan
from minimax_m2.harness.shards import sharded
from minimax_m2.harness.wrong_use import WrongUse, asked

GOAL = 0.97
GROUPS = (MUSEUM, HELD_OUT, GENERIC, KERNELS)
PLANTED = {GENERIC: "mutants", KERNELS: "rewritten lines"}
"""Groups of defects that operators made, of which some may survive."""
SHOWN = 2
"""Pairs that never met, an op."""


def score(
    op: Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")] = None,
    short: Annotated[bool, typer.Option("--short", help="every exhibit, half of the generic mutants")] = False,
    right: Annotated[
        int | None, typer.Option("--right", min=0, help="cases an op for what is right; costly ops take fewer")
    ] = None,
    kernels: Annotated[
        int, typer.Option(min=0, help="lines rewritten an operator and C++ source of ours; 0: a few of all, one a kind")
    ] = 0,
    shard: ShardOption = "1/1",
    join: Annotated[
        list[Path] | None, typer.Option("--join", help="judge what all shards printed with --json (repeatable)")
    ] = None,
    executor: ExecutorOption = Executor.LOCAL,
    address: AddressOption = "auto",
    resource: ResourceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Judge the museum's bugs, generic mutants and what is right: kills by op and check, survivors, false alarms."""
    # Here, because cli registers this command.
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, console, finish, working

    with asked():
        chosen, part = [find_op(name) for name in op or all_ops()], sharded(shard)
        done = joined(join) if join else None
    wanted, start = Asked(ops=tuple(op or ()), short=short, right=right, kernels=kernels), time.perf_counter()
    if done is None and executor is Executor.RAY:
        if not part.is_whole:
            raise WrongUse("--executor ray deals what is judged; leave --shard out")
        done = score_on_fleet(wanted, address=address, resources=resource or [])
    if done is None:
        with working() as bar:
            task = bar.add_task("starting", total=1.0)

            def tell(text: str, share: float) -> None:
                bar.update(task, description=text, completed=share)

            done = measured(plan(wanted, chosen).part(part), progress=tell)
    seconds = time.perf_counter() - start
    kills, tallied = done.kills, done.tallies
    if as_json:
        for line in done.lines(part):
            typer.echo(line)
    else:
        shown = (
            by_group(kills),
            by_op(kills),
            by_check(kills),
            leniency(kills),
            cries(tallied),
            coverage_table(done.coverages),
        )
        for table in shown:
            console.print(table)
        for kill in kills:
            if kill.survived:
                console.print(f"survived: {kill.name} ({kill.group})", markup=False)
            if kill.equal:
                console.print(f"equal, not counted: {kill.name}", markup=False)
        for found in tallied:
            for alarm in found.alarms:
                console.print(f"false alarm: {alarm}", markup=False)
    if not kills:
        finish(NOTHING_MEASURED, "nothing was measured", "no exhibit and no mutant of these ops", "m2check list")
    real = [kill for kill in kills if kill.group not in PLANTED]
    lost = [kill for kill in real if kill.survived]
    rates = {group: rate(kill for kill in kills if kill.group == group) for group in PLANTED}
    # What was not asked is not told.
    shares = [f"{rates[g]:.1%} of {PLANTED[g]}" for g in PLANTED if any(kill.group == g for kill in kills)]
    told = f"{len(real) - len(lost)} of {len(real)} bugs{''.join(f', {share}' for share in shares)} are caught"
    if lost:
        finish(
            WRONG, told, f"{lost[0].name} survives {lost[0].examples} examples", f"m2check score --op {lost[0].subject}"
        )
    # A part is too small for a share: those who join all parts judge it.
    for group in PLANTED if part.is_whole else ():
        if rates[group] < GOAL:
            first = next(kill for kill in kills if kill.group == group and kill.survived)
            finish(WRONG, told, f"{first.name} survives; the goal is {GOAL:.0%}", f"m2check score --op {first.subject}")
    for found in tallied:
        if found.wrong:
            alarmed = f"{found.op}: {found.wrong} of {found.cases} cases call a right implementation wrong"
            finish(WRONG, told, alarmed, f"m2check score --op {found.op}")
    finish(0, told, f"{seconds:.0f} s, {sum(kill.examples for kill in kills)} examples", "m2check run")


def by_group(kills: Iterable[Kill]) -> Table:
    """Caught and surviving, museum and mutants apart, and what was written before the checks were tuned by itself.

    Rewritten lines of which the compiler makes the same objects are not counted, but their seconds are.
    """
    table = Table(title="wrong providers", title_justify="left")
    for name in (
        "group",
        "caught",
        "of",
        "share",
        "as expected",
        "examples to the first kill: median",
        "largest",
        "seconds",
    ):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in GROUPS:
        own = [kill for kill in kills if kill.group == group]
        counted = [kill for kill in own if not kill.equal]
        caught = [kill for kill in counted if not kill.survived]
        counts = sorted(kill.examples for kill in caught) or [0]
        as_expected = "" if group in PLANTED else str(sum(kill.as_expected for kill in caught))
        share = f"{rate(own):.1%}" if own else ""
        row = (str(len(caught)), str(len(counted)), share, as_expected, str(counts[len(counts) // 2]))
        table.add_row(group, *row, str(counts[-1]), f"{sum(kill.seconds for kill in own):.0f}")
    return table


def by_op(kills: Iterable[Kill]) -> Table:
    """Caught of all, by what is broken."""
    table = Table(title="by op", title_justify="left")
    table.add_column("op")
    for group in GROUPS:
        table.add_column(group, justify="right")
    found = list(kills)
    for subject in dict.fromkeys(kill.subject for kill in sorted(found, key=lambda kill: kill.subject)):
        cells = []
        for group in GROUPS:
            own = [kill for kill in found if kill.subject == subject and kill.group == group and not kill.equal]
            cells.append(f"{sum(not kill.survived for kill in own)}/{len(own)}" if own else "")
        table.add_row(subject, *cells)
    return table


def by_check(kills: Iterable[Kill]) -> Table:
    """How often each kind of check fired on a first wrong example, and how often nothing else did."""
    table = Table(title="by check", title_justify="left")
    for name in ("check", "fired", "alone"):
        table.add_column(name, justify="left" if name == "check" else "right")
    fired, alone = Counter[str](), Counter[str]()
    for kill in kills:
        kinds = {check.partition(":")[2] or check for check in kill.checks}
        fired.update(kinds)
        alone.update(kinds if len(kinds) == 1 else ())
    for check, count in fired.most_common():
        table.add_row(check, str(count), str(alone[check]))
    return table


def leniency(kills: Iterable[Kill]) -> Table:
    """Bugs that the tolerance of the engine's own test accepts on some of our cases."""
    table = Table(title="what the tolerance of the engine's own test lets pass", title_justify="left")
    for name in ("bug", "op", "accepted", "of wrong outputs"):
        table.add_column(name, justify="right" if name in ("accepted", "of wrong outputs") else "left")
    for kill in kills:
        if kill.accepted is not None and kill.noticed:
            table.add_row(kill.name, kill.subject, str(kill.accepted), str(kill.noticed))
    return table


def cries(tallied: Iterable[Tally]) -> Table:
    """Cases on which an implementation that is right was called wrong, and the rate that this leaves possible."""
    table = Table(title="what is right", title_justify="left")
    for name in ("op", "implementations", "calls", "cases", "called wrong", "rate below, at 95 %"):
        table.add_column(name, justify="left" if name in ("op", "implementations") else "right")
    for found in tallied:
        counts = (str(found.calls), str(found.cases), str(found.wrong), f"{found.below:.1e}" if found.cases else "")
        table.add_row(found.op, " ".join(found.implementations), *counts)
    return table


def coverage_table(found: Iterable[Coverage]) -> Table:
    """Pairs of values that met in the cases that wrong providers were judged on, and some that never did."""
    table = Table(title="pairs of values of declared factors", title_justify="left")
    for name in ("op", "factors", "cases", "met", "of", "share", "never met, for example"):
        table.add_column(name, justify="left" if name in ("op", "never met, for example") else "right")
    for c in found:
        some = " ".join(f"{a}={x}:{b}={y}" for (a, x), (b, y) in c.never[:: max(1, len(c.never) // SHOWN)][:SHOWN])
        counts = (str(len(c.factors)), str(c.cases), str(c.met), str(c.declared), f"{c.share:.0%}")
        table.add_row(c.op, *counts, some)
    return table
