"""``m2check bench`` and ``m2check compare``: how fast verified outputs are made, alone and against somebody else's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.judge import BITS, bits_of, expected, malformed
from minimax_m2.harness.op import Op, all_ops, find_op
from minimax_m2.harness.paired import BUSY, Others, Pairing, PairRecord, alone, paired
from minimax_m2.harness.peers import PEERS, NotHere, apart, known_variant
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.record import SAMPLES, Canary, Log, Record, Timing
from minimax_m2.harness.roofline import Roof, measure
from minimax_m2.harness.run import run_name
from minimax_m2.harness.stopwatch import Remote, Stopwatch, Timed
from minimax_m2.harness.verdict import Outcome, Verdict, describe
from minimax_m2.harness.worker import Ended, Worker
from minimax_m2.harness.wrong_use import asked

NOT_COMPARABLE = 4
# So many draws are timed in turn, as long as together they stay below this size.
DRAWS, DRAWN_BYTES = 4, 1 << 26

TIMES = ("call", "median us", "best us", "of roof")

SetOption = Annotated[list[str] | None, typer.Option("--set", help="a case field, as T=16 (repeatable)")]
SecondsOption = Annotated[float, typer.Option(min=0.0, help="seconds to time for")]
JsonOption = Annotated[bool, typer.Option("--json", help="print records instead of a table")]


@dataclass(frozen=True, slots=True)
class Side:
    """A provider to time, the variant that was asked for, and the worker it lives in, if any."""

    provider: Provider
    asked: str
    worker: Worker | None

    def variant(self, op: Op) -> str:
        """The variant to time: the one asked for, or the best."""
        return self.asked or self.provider.variants_of(op.name)[-1]

    def timed(self, op: Op, cases: Sequence[Case]) -> Timed:
        texts, variant = [case.json for case in cases], self.variant(op)
        if self.worker is None:
            return Stopwatch(self.provider, texts, variant)
        return Remote(self.worker, texts, variant)

    def judged(self, op: Op, cases: Sequence[Case], timed: Timed) -> Verdict:
        """The verdict on what the timed calls returned: that of the first draw that is wrong, or of the last."""
        verdicts = [self._judged(op, case, timed.outputs(draw)) for draw, case in enumerate(cases)]
        return next((v for v in verdicts if not v.passed), verdicts[-1])

    def _judged(self, op: Op, case: Case, outputs: Outputs) -> Verdict:
        right, _ = expected(op, case, self.provider.contract.get(op.name, {}))
        fault = malformed(right, outputs)
        comparisons = () if fault else tuple(right.judge(outputs))
        wrong = [describe(c) for c in comparisons if not c.passed]
        outcome, evidence = fault or (Outcome.WRONG if wrong else Outcome.PASS, "; ".join(wrong))
        return Verdict(
            outcome=outcome, op=op.name, case=case, provider=self.provider.name, device=self.provider.device,
            variant=self.variant(op), evidence=(evidence,), comparisons=comparisons,
            utilisation=max((c.utilisation for c in comparisons), default=0.0),
            bits="" if fault else bits_of(tuple(o.detach().cpu() for o in outputs)).hex()[:BITS],
        )  # fmt: skip


@contextmanager
def side(text: str, *, own_process: bool) -> Iterator[Side]:
    """A provider by ``NAME``, ``NAME:VARIANT`` or file; a peer has a process of its own whether asked or not.

    Raises NotHere with the reason where a peer is absent, WrongUse for an unknown name or variant.
    """
    # Here, because cli registers these commands.
    from minimax_m2.harness.cli import built_in

    name, _, variant = text.partition(":")
    with ExitStack() as stack:
        with asked():
            worker: Worker | None = None
            if own_process or name in PEERS:
                worker, provider = stack.enter_context(apart(name))
            else:
                provider = from_file(name) if name.endswith(".py") else built_in(name)
            found = Side(provider, known_variant(name, variant, provider.variants), worker)
        yield found


def settings(pairs: Sequence[str]) -> dict[str, Field]:
    """Case fields of ``--set``; ValueError for what is no assignment."""
    found: dict[str, Field] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--set {text!r} is no assignment of a case field; write --set T=16")
        found[name] = int(value) if value.lstrip("-").isdigit() else value
    return found


def shaped(op: Op, shape: str, setting: dict[str, Field]) -> Case:
    """A shape of an op with some fields set; ValueError for an unknown shape or field."""
    if shape not in op.shapes:
        raise ValueError(f"op {op.name} has no shape {shape!r}; it has {', '.join(op.shapes)}")
    return op.case(**{**op.shapes[shape], **setting})


def draws(op: Op, case: Case) -> list[Case]:
    """The case with a few seeds, so that no call meets the inputs of the one before; one where they are large."""
    count = max(1, min(DRAWS, DRAWN_BYTES // max(1, op.cost(case).bytes)))
    return [case.but(seed=case.number("seed") + i) for i in range(count)]


def timing(op: Op, case: Case, shape: str, call: str, seconds: Sequence[float], roof: Roof) -> Timing:
    """Samples as a record keeps them."""
    cost, dtype = op.cost(case), case.word("dtype") if "dtype" in case else "float32"
    return Timing(
        shape=shape, call=call, median_us=statistics.median(seconds) * 1e6, best_us=min(seconds) * 1e6,
        calls=len(seconds), bytes=cost.bytes, flops=cost.flops, roof_us=roof.seconds(cost, dtype) * 1e6,
        clock="stopwatch", samples_us=some_of(seconds),
    )  # fmt: skip


def some_of(seconds: Sequence[float]) -> tuple[float, ...]:
    """Up to ``SAMPLES`` of these in microseconds, in their order: whether they lie in one heap, or wander."""
    taken = [seconds[at * len(seconds) // SAMPLES] for at in range(SAMPLES)] if len(seconds) > SAMPLES else seconds
    return tuple(float(f"{1e6 * one:.3g}") for one in taken)


def compare(
    a: Annotated[str, typer.Argument(help="ours, plain, a peer's name or a .py file; ours:avx2 names a variant")],
    b: Annotated[str, typer.Argument(help="the same; the ratio is its time over that of A")],
    op: Annotated[str | None, typer.Option(help="the op to compare on")] = None,
    model: Annotated[str | None, typer.Option(help="instead of an op, a step of tiny-m2 or m2-layer")] = None,
    shape: Annotated[str, typer.Option(help="the op's or model's named shape to start from")] = "decode",
    set_: SetOption = None,
    seconds: SecondsOption = 2.0,
    at_least: Annotated[float, typer.Option(help="the ratio to reach; a regression if it is surely missed")] = 1.0,
    own_process: Annotated[bool, typer.Option("--apart", help="a process each, as peers always have")] = False,
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
        with working() as bar, ExitStack() as stack:
            task = bar.add_task("measuring the roof", total=1.0)

            def tell(text: str) -> None:
                bar.update(task, description=text)

            roof = measure(tell)
            tell(f"{a} beside {b}")
            if model is not None:
                found = compare_models((a, b), case, setting, seconds, roof, tell)
            else:
                first, second = (stack.enter_context(side(text, own_process=own_process)) for text in (a, b))
                found = compared(find_op(case.op), case, shape, setting, (first, second), seconds, roof)
    except NotHere as error:
        finish(NOTHING_MEASURED, "nothing was measured", str(error), "make peers")
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


class Refused(RuntimeError):
    """One of two providers does not run a case; the message says which and why."""


def compared(
    op: Op, case: Case, shape: str, setting: dict[str, Field], sides: tuple[Side, Side], seconds: float, roof: Roof
) -> PairRecord:
    """Time two sides on one case. Raises Refused where one of them does not take it."""
    for one in sides:
        refusal = one.provider.refuses(op, case) if one.provider.offers(op.name) else f"it does not offer {op.name}"
        if refusal is not None:
            raise Refused(f"{one.provider.name}: {refusal}")
    cases = draws(op, case)
    first, second = (one.timed(op, cases) for one in sides)
    pairing: Pairing = paired(first, second, seconds=seconds)
    label = run_name()
    records = [
        Record.of(
            one.judged(op, cases, timed),
            run=label,
            timing=timing(op, case, shape, pairing.calls[at], (pairing.a, pairing.b)[at], roof),
            purpose="compare",
            canary=Canary.of(roof),
        )
        for at, (one, timed) in enumerate(zip(sides, (first, second), strict=True))
    ]
    return PairRecord(
        a=records[0], b=records[1], ratio=pairing.ratio, low=pairing.low, high=pairing.high, blocks=pairing.blocks,
        others=0.0, processes=1 if sides[0].worker is None and sides[1].worker is None else 2, setting=setting,
        date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


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
    device: Annotated[str, typer.Option(help="with --model: cpu or gpu")] = "cpu",
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
        bench_model(model, device, setting, loads=load or [], prompts=prompt or [], ablate=ablate, as_json=as_json)
        return
    with asked():
        ops, setting, label = [find_op(name) for name in op or all_ops()], settings(set_ or ()), run_name()
        wanted = {
            declared.name: [(at, shaped(declared, at, setting)) for at in shape or declared.shapes] for declared in ops
        }
    records: list[Record] = []
    absent = []
    with working() as bar:
        task = bar.add_task("measuring the roof", total=None)
        roof = measure(lambda text: bar.update(task, description=text))
        for name in provider or ["ours"]:
            try:
                with side(name, own_process=False) as one:
                    for declared in ops:
                        for at, case in wanted[declared.name]:
                            bar.update(task, description=f"{name} {declared.name} {at}")
                            records += timed_alone(declared, case, at, one, seconds, roof, label)
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
    op: Op, case: Case, shape: str, one: Side, seconds: float, roof: Roof, label: str
) -> list[Record]:  # fmt: skip
    """One provider on one case: nothing where it does not offer the op, a verdict without time where it ended."""
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
    took = timing(op, case, shape, call, samples, roof)
    return [Record.of(verdict, run=label, timing=took, purpose="bench", canary=Canary.of(roof))]


def bench_table(records: Sequence[Record]) -> Table:
    """One line a case."""
    table = Table(
        "op", "provider", "variant", "shape", "call", "median us", "best us", "of roof", "verdict", "budget used"
    )
    for r in records:
        at = r.timing.shape if r.timing else ""
        table.add_row(r.op, r.provider, r.variant, at, *timing_cells(r), r.outcome, budget_used(r))
    return table
