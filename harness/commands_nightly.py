"""``m2check nightly``, ``events``, ``event`` and ``dash``: records of many nights, what moved in them, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from minimax_m2.harness.options import AddressOption, Executor, ExecutorOption, ShardOption
from minimax_m2.harness.wrong_use import WrongUse, asked

STORE = Path("runs/nightly")
NOTHING_MEASURED = 5

StoreOption = Annotated[Path, typer.Option("--store", help="the folder of history")]
IndexOption = Annotated[
    str,
    typer.Option(
        "--index", envvar="MINIMAX_M2_INDEX", help="the index's database, as postgresql://HOST/NAME; else a file"
    ),
]
AcceptedOption = Annotated[Path, typer.Option("--accepted", help="the folder of acceptances, under git")]
SinceOption = Annotated[str, typer.Option(help="only nights of the last so many days, as 90d")]
ACCEPTED = Path("ci/accepted")

nightly = typer.Typer(help="Keep records of many nights and machines.", no_args_is_help=True)
dash = typer.Typer(help="Show what moved: a page, or a few lines.", no_args_is_help=True)


class Form(StrEnum):
    """How events are written."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JUNIT = "junit"
    CTRF = "ctrf"
    JSON = "json"


class Action(StrEnum):
    """What can be done with an event."""

    SHOW = "show"
    ACCEPT = "accept"


def register(app: typer.Typer) -> None:
    """Enter these commands."""
    app.add_typer(nightly, name="nightly")
    app.add_typer(dash, name="dash")
    app.command()(events)
    app.command()(event)


@nightly.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="records of runs: .jsonl or .jsonl.gz")],
    store: StoreOption = STORE,
    index: IndexOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Merge files of records of any machine; what is bad or cut short is quarantined, never half-read."""
    from minimax_m2.harness.cli import WRONG, console, finish
    from minimax_m2.harness.history.store import Store

    with asked():
        found = Store(store, index=index).add(files)
    if as_json:
        rows = [
            {"file": str(a.path), "records": a.records, "new": a.new, "left out": a.left_out, "fault": a.fault}
            for a in found
        ]
        typer.echo(json.dumps(rows))
    else:
        for one in found:
            console.print(str(one), markup=False, soft_wrap=True)
    bad = [one for one in found if one.fault]
    new = sum(one.new for one in found)
    if bad:
        told = f"{len(bad)} of {len(found)} files are no whole files of records; {new} new records"
        finish(WRONG, told, f"{bad[0].path.name}: {bad[0].fault}", f"ls {store}/quarantine")
    finish(0, f"{new} new records of {len(found)} files", f"store: {store}", "m2check dash build")


@nightly.command()
def run(
    op: Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")] = None,
    provider: Annotated[list[str] | None, typer.Option("--provider", help="ours, plain or a peer (repeatable)")] = None,
    against: Annotated[str, typer.Option(help="the accepted build, a revision; else the last night's")] = "",
    build: Annotated[str, typer.Option(help="measure this commit's kernels instead of the checkout's")] = "",
    budget: Annotated[float, typer.Option(min=0.1, help="minutes for the plan; re-runs come on top")] = 40.0,
    seconds: Annotated[float, typer.Option(min=0.05, help="seconds of interleaved blocks a cell")] = 1.5,
    shard: ShardOption = "1/1",
    executor: ExecutorOption = Executor.LOCAL,
    address: AddressOption = "auto",
    resource: Annotated[str, typer.Option(help="with --executor ray: what its machines have")] = "cpu",
    store: StoreOption = STORE,
    index: IndexOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure a night beside the accepted build; a killed one goes on where it was."""
    from dataclasses import asdict

    from minimax_m2.harness.cli import finish, working
    from minimax_m2.harness.commands_fleet import joined_fleet
    from minimax_m2.harness.history.fleet_night import tonight_on
    from minimax_m2.harness.history.nightly import Asked, tonight
    from minimax_m2.harness.history.store import Store
    from minimax_m2.harness.op import find_op
    from minimax_m2.harness.peers import NotHere
    from minimax_m2.harness.shards import sharded

    with asked():
        wanted = Asked(
            ops=tuple(find_op(name).name for name in op or ()), providers=tuple(provider or ("ours", "plain")),
            against=against, build=build, budget=budget, seconds=seconds, shard=sharded(shard),
            resource=resource if executor is Executor.RAY else "",
        )  # fmt: skip
        if wanted.resource and not wanted.shard.is_whole:
            raise WrongUse("--executor ray deals cells; leave --shard out")
        try:
            with working() as bar:
                task = bar.add_task("starting", total=1.0)

                def tell(text: str, share: float) -> None:
                    bar.update(task, description=text, completed=share)

                if wanted.resource:
                    with joined_fleet(address, [wanted.resource]) as fleet:
                        done = tonight_on(fleet, Store(store, index=index), wanted, tell)
                else:
                    done = tonight(Store(store, index=index), wanted, tell)
        except (RuntimeError, NotHere) as error:
            finish(NOTHING_MEASURED, "nothing was measured", str(error), "m2check doctor")
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"kept": str(done.kept)}))
    got = done.outcome
    told = f"{got.cells} of {got.planned} cells measured beside {done.against[:12]}"
    told += ", a killed night resumed" if done.resumed else ""
    evidence = f"{got.throttled} left out beside a slow machine, {done.suspicious} measured again; {done.kept}"
    finish(0 if got.cells else NOTHING_MEASURED, told, evidence, "m2check events")


@nightly.command()
def rebuild(store: StoreOption = STORE, index: IndexOption = "") -> None:
    """Make the index again of all files."""
    from minimax_m2.harness.cli import finish
    from minimax_m2.harness.history.store import Store

    with asked():
        count = Store(store, index=index).rebuild()
    finish(0 if count else NOTHING_MEASURED, f"{count} records are indexed", f"store: {store}", "m2check events")


def nights_since(text: str) -> str:
    """``90d`` as the first day that is still read, as runs write it; empty for all."""
    if not text:
        return ""
    if not text.endswith("d") or not text[:-1].isdigit():
        raise WrongUse(f"--since {text!r} is no number of days; write 90d")
    return (datetime.now(UTC) - timedelta(days=int(text[:-1]))).strftime("%Y%m%d")


def lanes_asked(store: Path, index: str, accepted: Path, since: str) -> Any:
    """The lanes of a store, with a progress line; exit 5 where there are none."""
    from minimax_m2.harness.cli import finish, working
    from minimax_m2.harness.history.store import Store
    from minimax_m2.harness.history.tonight import lanes_of

    with asked():
        first = nights_since(since)
        with working() as bar:
            task = bar.add_task("reading the store", total=None)
            found = lanes_of(
                Store(store, index=index), since=first, accepted=accepted,
                progress=lambda text: bar.update(task, description=text),
            )  # fmt: skip
    if not found:
        finish(NOTHING_MEASURED, "no night is recorded", f"store: {store}", "m2check nightly add runs/*.jsonl")
    return found


def events(
    form: Annotated[Form, typer.Option("--format", help="text, markdown, junit, ctrf or json")] = Form.TEXT,
    store: StoreOption = STORE,
    index: IndexOption = "",
    accepted: AcceptedOption = ACCEPTED,
    since: SinceOption = "",
) -> None:
    """Say what moved and why; exit code 1 where something is wrong or our own code is slower."""
    from minimax_m2.harness.cli import console
    from minimax_m2.harness.history.formats import rows, written

    found = lanes_asked(store, index, accepted, since)
    listed = rows(found)
    if form is Form.TEXT:
        console.print(event_table(listed))
    else:
        typer.echo(written(found, form.value))
    conclude(listed)


def event_table(listed: Sequence[dict[str, Any]]) -> Table:
    """One row an event."""
    from minimax_m2.harness.history.formats import size

    table = Table("event", "state", "cause", "what", "moved", "night", "rule")
    for row in listed:
        cells = [str(row["number"]), row["state"], row["cause"], f"{row['what']}, {row['lane']}", size(row)]
        # Names come from data; brackets in them are no markup.
        table.add_row(*(text.replace("[", "\\[") for text in (*cells, row["date"], row["text"] or row["rule"])))
    return table


def conclude(listed: Sequence[dict[str, Any]]) -> None:
    """The last three lines: what must be acted on, why, and what to paste."""
    from minimax_m2.harness.cli import WRONG, finish
    from minimax_m2.harness.history.formats import size

    acting = [row for row in listed if row["regression"]]
    if not acting:
        finish(
            0,
            f"{len(listed)} events, none to act on",
            "nothing is wrong, nothing of ours is slower",
            "m2check dash build",
        )
    acting.sort(key=lambda row: row["cause"] != "wrong")
    first = acting[0]
    told = f"{len(acting)} of {len(listed)} events to act on: {first['what']} {size(first)}"
    finish(WRONG, told, f"{first['cause']}: {first['text'] or first['rule']}", first["command"])


def event(
    number: Annotated[int, typer.Argument(help="the event's number, as `m2check events` shows it")],
    action: Annotated[Action, typer.Argument(help="show or accept")] = Action.SHOW,
    reason: Annotated[str, typer.Option(help="why this is as it should be")] = "",
    store: StoreOption = STORE,
    index: IndexOption = "",
    accepted: AcceptedOption = ACCEPTED,
) -> None:
    """Show one event, or accept it with a reason: a file under git that every machine's page then shows."""
    from minimax_m2.harness.cli import console, finish
    from minimax_m2.harness.history.accepted import accept
    from minimax_m2.harness.history.pages import event_row
    from minimax_m2.harness.history.tonight import find_event

    lanes = lanes_asked(store, index, accepted, "")
    with asked():
        panel, found = find_event(lanes, number)
        if action is Action.ACCEPT:
            path = accept(found, panel, reason, folder=accepted)
            finish(0, f"event {number} is accepted", str(path), f"git add {path}")
    row = event_row(panel, 0, found) | {"lane": panel.lane, "series": [str(panel.series[r]) for r in found.rows]}
    console.print_json(data=row)


@dash.command()
def build(
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("nightly.html"),
    store: StoreOption = STORE,
    index: IndexOption = "",
    accepted: AcceptedOption = ACCEPTED,
    since: SinceOption = "",
    drift: Annotated[list[Path] | None, typer.Option(help="a .drift.json file to show (repeatable)")] = None,
    trust: Annotated[Path | None, typer.Option(help="what `m2check score --json` printed")] = None,
    levels: Annotated[list[Path] | None, typer.Option(help="what `pytest --levels FILE` wrote (repeatable)")] = None,
) -> None:
    """Write one offline page: what moved, why, and what to run next."""
    from minimax_m2.harness.cli import finish
    from minimax_m2.harness.history.extras import extras
    from minimax_m2.harness.history.pages import page

    with asked():
        beside = extras(drift or [], trust, levels or [])
    lanes = lanes_asked(store, index, accepted, since)
    out.write_text(page(lanes, beside))
    count = sum(len(found) for _, found in lanes)
    told = f"{out}: {len(lanes)} lanes, {count} events, {out.stat().st_size / 1e6:.2f} MB"
    finish(0, told, "one file, which fetches nothing", f"m2check dash serve --page {out}")


@dash.command()
def text(
    store: StoreOption = STORE, index: IndexOption = "", accepted: AcceptedOption = ACCEPTED, since: SinceOption = ""
) -> None:
    """Say the same in a few lines."""
    from minimax_m2.harness.cli import console
    from minimax_m2.harness.history.formats import rows
    from minimax_m2.harness.history.text import summary

    lanes = lanes_asked(store, index, accepted, since)
    for line in summary(lanes):
        console.print(line, markup=False, highlight=False)
    conclude(rows(lanes))


@dash.command()
def serve(
    page: Annotated[Path, typer.Option(help="the page to show; built again by others, it is read again")] = Path(
        "nightly.html"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any")] = 8000,
    host: Annotated[
        str, typer.Option(help="who may see it: only this machine, unless you say otherwise")
    ] = "localhost",
    store: StoreOption = STORE,
) -> None:
    """Show a page to a browser, on this machine only, with how far a running night is."""
    from minimax_m2.harness.cli import finish, told
    from minimax_m2.harness.history.serving import server

    with asked():
        if not page.is_file():
            raise FileNotFoundError(f"page {str(page)!r} does not exist; `m2check dash build` writes it")
        serving = server(page, host, port, store=store)
    told(f"http://{host}:{serving.server_address[1]}/ shows {page}; Ctrl-C ends it")
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        serving.server_close()
    finish(0, "the server has ended", str(page), "m2check dash build")
