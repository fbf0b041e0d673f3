"""``m2check bench`` and ``m2check compare``: how fast verified outputs are made, alone and against somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minimax_m2.harness.case import Case
from minimax_m2.harness.contenders import (
    Refused,
    Side,
    believable,
    compared,
    device_for,
    draws,
    roof_of,
    settings,
    shaped,
    side,
    timing,
)
from minimax_m2.harness.graph_stopwatch import Uncapturable
from minimax_m2.harness.op import Op, all_ops, find_op
from minimax_m2.harness.paired import BUSY, Others, PairRecord, alone
from minimax_m2.harness.peers import PEERS, NotHere, device_of
from minimax_m2.harness.profiled import Kernel, profiled
from minimax_m2.harness.record import Canary, Log, Record
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.run import run_name
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.harness.worker import Ended
from minimax_m2.harness.wrong_use import asked

NOT_COMPARABLE = 4
TIMES = ("call", "median us", "best us", "of roof")

SetOption = Annotated[list[str] | None, typer.Option("--set", help="a case field, as T=16 (repeatable)")]
DeviceOption = Annotated[str, typer.Option(help="cpu, gpu, or where the named peers run")]
SecondsOption = Annotated[float, typer.Option(min=0.0, help="seconds to time for")]
JsonOption = Annotated[bool, typer.Option("--json", help="print records instead of a table")]


def compare(
    a: Annotated[str, typer.Argument(help="ours, plain, a peer's name or a .py file; ours:avx2 names a variant")],
    b: Annotated[str, typer.Argument(help="the same; the ratio is its time over that of A")],
    op: Annotated[str | None, typer.Option(help="the op to compare on")] = None,
    model: Annotated[str | None, typer.Option(help="instead of an op, a step of tiny-m2 or m2-layer")] = None,
    shape: Annotated[str, typer.Option(help="the op's or model's named shape to start from")] = "decode",
    set_: SetOption = None,
    seconds: SecondsOption = 2.0,
    at_least: Annotated[float, typer.Option(help="the ratio to reach; a regression if it is surely missed")] = 1.0,
    own_process: Annotated[bool, typer.Option("--apart", help="a process each, as peers of a CPU always have")] = False,
    device: DeviceOption = "",
    out: Annotated[Path | None, typer.Option(help="append the comparison to this .jsonl file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time two providers in interleaved blocks, judge what they returned, and give the ratio with its interval."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, RUNS, WRONG, console, finish, working
    from minimax_m2.harness.commands_models import compare_models
    from minimax_m2.harness.timed_models import model_case

    with asked():
        setting = settings(set_ or ())
        if model is not None and op is None:
            subject, case = f"--model {model}", model_case(model, shape, setting)
        elif op is not None and model is None:
            subject, case = f"--op {op}", shaped(find_op(op), shape, setting)
        else:
            raise ValueError("compare takes one of --op OP and --model MODEL")
    again = " ".join(["m2check compare", a, b, subject, f"--shape {shape}", *(f"--set {s}" for s in set_ or ())])
    own_process |= any(name.partition(":")[0] in PEERS for name in (a, b))
    meanwhile = Others()
    try:
        with asked():
            place = device_for((a, b), device)
        again += f" --device {device}" if device else ""
        with working() as bar, ExitStack() as stack:
            task = bar.add_task("measuring the roof", total=1.0)

            def tell(text: str) -> None:
                bar.update(task, description=text)

            roof = roof_of(place, tell)
            tell(f"{a} beside {b}")
            if model is not None:
                found = compare_models((a, b), case, setting, seconds, roof, tell)
            else:
                sides = (side(text, own_process=own_process, device=place) for text in (a, b))
                first, second = (stack.enter_context(one) for one in sides)
                found = compared(find_op(case.op), case, shape, setting, (first, second), seconds, roof)
    except NotHere as error:
        finish(NOTHING_MEASURED, "nothing was measured", str(error), remedy(error))
    except Refused as error:
        finish(NOT_COMPARABLE, f"{a} and {b} cannot be compared on {case.op}", str(error), again)
    except Ended as error:
        finish(NOT_COMPARABLE, f"{a} and {b} cannot be compared on {case.op}: {error.outcome.value}", str(error), again)
    # Only now, since a worker's time is known when it has ended.
    found = replace(found, others=round(meanwhile.cores(), 2))
    path = out or RUNS / "pairs" / f"{found.a.run}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Log(path) as log:
        log.append(found.json)
    if as_json:
        typer.echo(found.json)
    else:
        console.print(pair_table(found))
    for record in (found.a, found.b):
        if not record.passed:
            told = f"{a} and {b} cannot be compared: {record.provider} is {record.outcome}"
            next_ = again if model is not None else f"m2check repro '{Case(record.case).json}'"
            finish(NOT_COMPARABLE, told, record.evidence[0], next_)
    told = f"{found.a.provider} is {found.ratio:.3g} times as fast as {found.b.provider} on {case.op} {case}"
    evidence = f"95 % interval {found.low:.3g} to {found.high:.3g}, {found.blocks} blocks; record: {path}"
    if found.others > BUSY:
        evidence += f"; other work kept {found.others:.1f} cores busy: repeat it on a quiet machine"
    finish(WRONG if found.high < at_least else 0, told, evidence, again)


def remedy(absent: NotHere) -> str:
    """The command that goes on where something is not here: to install it, or to see what is."""
    return "make peers" if "make peers" in str(absent) else "m2check doctor"


def pair_table(found: PairRecord) -> Table:
    """Both sides, a line each."""
    table = Table("provider", "variant", *TIMES, "verdict", "budget used")
    for record in (found.a, found.b):
        table.add_row(record.provider, record.variant, *timing_cells(record), record.outcome, budget_used(record))
    return table


def timing_cells(record: Record) -> tuple[str, str, str, str]:
    """Call, median, best and share of the roof, as they are shown."""
    found = record.timing
    if found is None:
        return "", "", "", ""
    return found.call, f"{found.median_us:.4g}", f"{found.best_us:.4g}", f"{100 * found.share:.0f} %"


def budget_used(record: Record) -> str:
    """How much of its error budget a record used."""
    return "" if record.utilisation is None else f"{record.utilisation:.2f}"


def bench(
    op: Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")] = None,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", help="ours, plain, a peer's name or a .py file (repeatable)")
    ] = None,
    shape: Annotated[list[str] | None, typer.Option("--shape", help="only this named shape (repeatable)")] = None,
    set_: SetOption = None,
    seconds: SecondsOption = 0.2,
    model: Annotated[str | None, typer.Option(help="instead of ops, steps of a whole model: m2")] = None,
    load: Annotated[list[str] | None, typer.Option(help="with --model: sequences x tokens held, 8x4096")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="with --model: prompts x tokens, as --load if none")] = None,
    device: DeviceOption = "",
    profile: Annotated[Path | None, typer.Option(help="write a trace of each case here, show its kernels")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="with --model: each fused op beside its parts")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time every op of some providers, judge what they returned, and hold it against the measured roof."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, RUNS, WRONG, console, finish, working
    from minimax_m2.harness.commands_wide import bench_model

    if model is not None:
        with asked():
            if op or provider or shape:
                raise ValueError("bench takes one of --model MODEL and --op, --provider, --shape")
            setting = settings(set_ or ())
        where = device or "cpu"
        bench_model(model, where, setting, loads=load or [], prompts=prompt or [], ablate=ablate, as_json=as_json)
        return
    with asked():
        if profile is not None and any(name in PEERS and device_of(name) == "cpu" for name in provider or ()):
            raise ValueError("--profile sees this process, and peers of a CPU have one of their own; leave them out")
        ops, setting, label = [find_op(name) for name in op or all_ops()], settings(set_ or ()), run_name()
        wanted = {
            declared.name: [(at, shaped(declared, at, setting)) for at in shape or declared.shapes] for declared in ops
        }
        try:
            place = device_for(provider or ["ours"], device)
        except NotHere as error:
            finish(NOTHING_MEASURED, "nothing was measured", str(error), remedy(error))
    records: list[Record] = []
    kernels: dict[str, list[Kernel]] = {}
    absent = []
    with working() as bar:
        task = bar.add_task("measuring the roof", total=None)
        roof = roof_of(place, lambda text: bar.update(task, description=text))
        for name in provider or ["ours"]:
            try:
                with side(name, own_process=False, device=place) as one:
                    for declared in ops:
                        for at, case in wanted[declared.name]:
                            bar.update(task, description=f"{name} {declared.name} {at}")
                            records += timed_alone(declared, case, at, one, seconds, roof, label, kernels, profile)
            except NotHere as error:
                absent.append(str(error))
    if not records:
        finish(NOTHING_MEASURED, "nothing was measured", (absent or ["nobody offers these ops"])[0], "m2check list")
    RUNS.mkdir(exist_ok=True)
    path = RUNS / f"{label}.jsonl"
    path.write_text("".join(record.json + "\n" for record in records))
    if as_json:
        typer.echo(path.read_text().rstrip())
    else:
        console.print(bench_table(records))
        if kernels:
            console.print(kernel_table(kernels))
        for line in absent:
            console.print(f"[dim]{line}[/]")
    wrong = [record for record in records if record.outcome not in (Outcome.PASS.value, Outcome.UNSUPPORTED.value)]
    if wrong:
        told = f"{len(wrong)} of {len(records)} timed cases are wrong: {wrong[0].op} of {wrong[0].provider}"
        finish(WRONG, told, wrong[0].evidence[0], f"m2check repro {wrong[0].case_id} --with {wrong[0].provider}")
    if not any(record.timing for record in records):
        finish(NOTHING_MEASURED, "nothing was measured", records[0].evidence[0], "m2check list")
    finish(0, f"{len(records)} cases timed", f"records: {path}", "m2check compare ours plain --op routing")


def timed_alone(
    op: Op, case: Case, shape: str, one: Side, seconds: float, roof: Roof, label: str,
    kernels: dict[str, list[Kernel]] | None = None, profile: Path | None = None,
) -> list[Record]:  # fmt: skip
    """One provider on one case: nothing where it does not offer the op, a verdict without time where it ended.

    With ``profile`` a trace is written into that folder, and ``kernels`` is told what it holds.
    """
    provider = one.provider
    if not provider.offers(op.name):
        return []

    def record(outcome: Outcome, evidence: str) -> list[Record]:
        verdict = Verdict(
            outcome=outcome, op=op.name, case=case, provider=provider.name, device=provider.device,
            variant=one.variant(op), evidence=(evidence,),
        )  # fmt: skip
        return [Record.of(verdict, run=label, purpose="bench")]

    refusal = provider.refuses(op, case)
    if refusal is not None:
        return record(Outcome.UNSUPPORTED, refusal)
    cases = draws(op, case)
    try:
        timed = one.timed(op, cases)
        call, samples = alone(timed, seconds=seconds)
        verdict = one.judged(op, cases, timed)
    except Ended as error:
        return record(error.outcome, str(error))
    except Uncapturable as error:
        return record(Outcome.RAISED, str(error))
    if profile is not None and kernels is not None:
        name = f"{op.name}-{provider.name}-{shape}"
        kernels[name] = profiled(timed, provider.device, profile / f"{name}.json")
    took = timing(op, case, shape, call, samples, roof, clock=one.clock)
    verdict = believable(op, verdict, took, roof)
    return [Record.of(verdict, run=label, timing=took, purpose="bench", canary=Canary.of(roof))]


def kernel_table(kernels: Mapping[str, Sequence[Kernel]]) -> Table:
    """What the timed calls of each case spent their time in."""
    table = Table("case", "kernel", "launches", "us each", "of its time")
    for case, found in kernels.items():
        for one in found:
            each = f"{one.microseconds / one.launches:.4g}"
            table.add_row(case, one.name[:60], str(one.launches), each, f"{100 * one.share:.0f} %")
    return table


def bench_table(records: Sequence[Record]) -> Table:
    """One line a case."""
    table = Table(
        "op", "provider", "variant", "shape", "call", "median us", "best us", "of roof", "verdict", "budget used"
    )
    for r in records:
        at = r.timing.shape if r.timing else ""
        table.add_row(r.op, r.provider, r.variant, at, *timing_cells(r), r.outcome, budget_used(r))
    return table
