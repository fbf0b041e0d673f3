"""``m2check run``: judge every op of every provider here, or a part of the plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from minimax_m2.harness.commands_fleet import run_on_fleet
from minimax_m2.harness.exhaustive import Histogram, histograms
from minimax_m2.harness.first_failures import known_failures, made_small
from minimax_m2.harness.isolation import Isolation, chosen_apart
from minimax_m2.harness.matrix import Cell, due, expected_dir, lost
from minimax_m2.harness.models import ModelRecord, read_models, score_models, tiny_m2
from minimax_m2.harness.op import find_op
from minimax_m2.harness.options import (
    AddressOption,
    DeviceOption,
    Executor,
    ExecutorOption,
    FileOption,
    JsonOption,
    NameOption,
    OpOption,
    PdbOption,
    ResourceOption,
    ShardOption,
    VariantOption,
)
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Record, read
from minimax_m2.harness.report import covered, failure, headline, page, replay
from minimax_m2.harness.shards import MODELS, seconds_of, sharded
from minimax_m2.harness.summary import lines
from minimax_m2.harness.table import absent_devices, coverage_line, model_table, run_table
from minimax_m2.harness.wrong_use import WrongUse, asked

Tell = Callable[..., None]


def run(
    op: OpOption = None,
    provider: FileOption = None,
    with_: NameOption = None,
    variant: VariantOption = None,
    cases: Annotated[int, typer.Option(min=1, help="sampled cases a cell")] = 12,
    times: Annotated[bool, typer.Option("--times/--no-times", help="time decode and prefill shapes")] = True,
    model: Annotated[bool, typer.Option("--model/--no-model", help="score whole models on tiny-m2")] = True,
    report: Annotated[Path | None, typer.Option(help="write a one-file HTML page")] = None,
    case: Annotated[str | None, typer.Option(help="this case only: its JSON, or the id of a recorded one")] = None,
    pdb: PdbOption = False,
    device: DeviceOption = "cpu",
    isolate: Annotated[bool, typer.Option("--isolate", help="each provider in a process of its own; no times")] = False,
    deadline: Annotated[float, typer.Option(min=1, help="with --isolate: seconds of one call")] = 120.0,
    memory: Annotated[float, typer.Option(min=0.25, help="with --isolate: GiB of a provider")] = 8.0,
    shrink: Annotated[float, typer.Option(min=0, help="seconds to make each cell's first failure small; 0: none")] = 30,
    shard: ShardOption = "1/1",
    executor: ExecutorOption = Executor.LOCAL,
    address: AddressOption = "auto",
    resource: ResourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge every op of every provider on this machine, and time what is right."""
    # Here, because cli registers this command.
    from minimax_m2.harness.cli import (
        NOTHING_MEASURED,
        RUNS,
        case_of,
        check_variants,
        chosen,
        finish,
        judge_again,
        told,
        working,
    )
    from minimax_m2.harness.paired import BUSY, Others
    from minimax_m2.harness.run import new_log, planned

    with asked():
        part = sharded(shard)
    # Calls that cross processes take longer than what they call, and a model holds its weights in one.
    times, model = times and not isolate, model and not isolate
    apart = Isolation(deadline, int(memory * 2**30))
    if case is not None:
        found = case_of(case)
        if op and op != [found.op]:
            raise WrongUse(f"case {case!r} is one of {found.op}; leave --op {op[0]} out, or name its op")
        again = chosen_apart(provider, with_, device, apart) if isolate else chosen(provider, with_, device)
        judge_again(found, again, variant, pdb=pdb, as_json=as_json)
    if pdb:
        raise WrongUse("--pdb stops before one call; say which case with --case ID")
    with asked():
        for name in op or []:
            find_op(name)
    if executor is Executor.RAY:
        if isolate or report or not part.is_whole or device != "cpu":
            raise WrongUse("--executor ray deals cells by --resource; leave --shard, --device, --isolate, --report out")
        run_on_fleet(
            provider or [], with_ or [], op or [], variant or [], count=cases, times=times, models=model,
            address=address, resources=resource or [], as_json=as_json,
        )  # fmt: skip
    providers = chosen_apart(provider, with_, device, apart) if isolate else chosen(provider, with_, device)
    check_variants(providers, variant)
    every = planned(providers, ops=op or (), variants=variant or ())
    if not every:
        wanted = ", ".join(op or ["any op"])
        finish(NOTHING_MEASURED, "nothing was measured", f"no provider offers {wanted}", "m2check list")
    with_models = model and not op and not variant and device == "cpu"
    everything: list[Cell | str] = [*every, *([MODELS] if with_models else [])]
    mine = part.of(everything, cost=cost)
    if not mine:
        empty = f"part {part} of {len(every)} cells is empty"
        finish(NOTHING_MEASURED, "nothing was measured", empty, f"m2check run --shard 1/{len(every)}")
    sources = {p.name: p.source for p in providers}
    records: list[Record] = []
    models: list[ModelRecord] = []
    label, log = new_log(RUNS)
    path, meanwhile = RUNS / f"{label}.jsonl", Others()
    with log, working() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(text: str, share: float | None = None) -> None:
            bar.update(task, description=text, completed=share)

        for row in judged_here(providers, mine, label, count=cases, times=times, tell=tell):
            log.append(row.json)
            if isinstance(row, Record):
                records.append(row)
            else:
                models.append(row)
    whole = not (op or provider or with_ or variant)
    show(records, models, as_json)
    if times and (busy := meanwhile.cores()) > BUSY:
        told(f"other work kept {busy:.1f} cores busy: verdicts stand, times and shares of the roof do not")
    if shrink:
        with working() as bar:
            task = bar.add_task("starting", total=None)
            small = made_small(records, providers, RUNS, seconds=shrink, progress=tell)
            for line in small:
                told(line)
    numbers = list[Histogram]()
    if report is not None:
        cells = [one for one in mine if isinstance(one, Cell)]
        numbers = [found for cell in cells for found in asked_of_every_number(cell, providers)]
        shown = page(read(path), absent=absent_devices(), models=read_models(path), sources=sources, every=numbers)
        report.write_text(shown)
    elsewhere = {cell for cell in every if cell not in mine}
    conclude(records, path, sources=sources, whole=whole, models=models, elsewhere=elsewhere, every=numbers)


def cost(one: Cell | str) -> float | None:
    """What a part of a plan takes, as far as it is known."""
    return seconds_of(one.op if isinstance(one, Cell) else one)


def judged_here(
    providers: list[Provider], mine: Sequence[Cell | str], label: str, *, count: int, times: bool, tell: Tell
) -> Iterator[Record | ModelRecord]:
    """Judge these cells, and whole models where they are among them, in this process."""
    from minimax_m2.harness.cli import RUNS, told
    from minimax_m2.harness.roofline import measure
    from minimax_m2.harness.run import run as run_cells

    roof = measure(tell) if times else None
    cells = [one for one in mine if isinstance(one, Cell)]
    known = known_failures(RUNS, told)
    yield from run_cells(providers, chosen=cells, count=count, roof=roof, name=label, failures=known, progress=tell)
    if MODELS in mine:
        yield from model_records(providers, label, tell)


def asked_of_every_number(cell: Cell, providers: list[Provider]) -> Iterator[Histogram]:
    """The histograms of a cell's functions, of the provider that it names."""
    (provider,) = (p for p in providers if (p.name, p.device) == (cell.provider, cell.device))
    return histograms(provider, cell.op, cell.variant)


def show(records: list[Record], models: list[ModelRecord], as_json: bool) -> None:
    """Print a run."""
    from minimax_m2.harness.cli import console

    if as_json:
        for line in [*(record.json for record in records), *(row.json for row in models)]:
            typer.echo(line)
        return
    console.print(run_table(lines(records)))
    console.print(f"[dim]{coverage_line(covered(records))}[/]")
    if models:
        console.print(model_table(models))
    for line in absent_devices():
        console.print(f"[dim]{line}[/]")


def model_records(providers: list[Provider], label: str, progress: Callable[[str], None]) -> Iterator[ModelRecord]:
    """Score whole models, where the checkout's tiny-m2 is at hand."""
    from minimax_m2.harness.cli import errors

    folder = tiny_m2()
    if folder is None:
        errors.print("[dim]tiny-m2 is not here: run from a checkout to score whole models[/]")
        return iter(())
    return score_models(providers, folder, run=label, progress=progress)


def conclude(
    records: list[Record],
    path: Path,
    *,
    sources: dict[str, str],
    whole: bool,
    models: Sequence[ModelRecord] = (),
    elsewhere: Collection[Cell] = (),
    every: Sequence[Histogram] = (),
) -> NoReturn:
    """Exit with the run's verdict, its evidence and the next command. Cells that are ``elsewhere`` are not missed."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, finish

    folded = lines(records)
    wrong = [line for line in folded if line.failed]
    if wrong:
        first = wrong[0].failed[0]
        again = replay(first, sources.get(first.provider, ""))
        finish(WRONG, headline(folded), failure(first).splitlines()[1], again)
    if off := [one for one in every if one.wrong]:
        told = f"{off[0].op}: {off[0].name} of {off[0].dtype} is wrong on {off[0].provider} {off[0].variant}".rstrip()
        finish(WRONG, told, off[0].wrong, f"m2check run --op {off[0].op} --report page.html{options(sources)}")
    silent = [row for row in models if row.score is None]
    if silent:
        told = f"the model on {silent[0].provider} did not run"
        finish(WRONG, told, silent[0].reason, f"m2check run --no-times{options(sources)}")
    if records and not any(line.judged for line in folded):
        finish(NOTHING_MEASURED, "nothing was measured", f"{records[0].op}: {records[0].evidence[0]}", "m2check list")
    executed = {line.cell for line in folded if line.judged} | set(elsewhere)
    folder = expected_dir()
    if whole and folder is not None:
        gone = lost(due(folder, executed), executed)
        if gone:
            told = f"{len(gone)} expected cells did not run"
            finish(WRONG, told, f"first: {gone[0].id}", f"m2check run --op {gone[0].op}")
    told = headline(folded) if folded else f"{len(models)} models are scored"
    finish(0, told, f"records: {path}", "m2check matrix")


def options(sources: dict[str, str]) -> str:
    """What a command line must say to get these providers' files again."""
    return "".join(f" --provider {source}" for source in sources.values() if source)
