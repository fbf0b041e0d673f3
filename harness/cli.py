"""``m2check``: judge kernels, list what is known, replay what failed.

Exit codes: 0 fine; 1 wrong; 2 wrong use; 5 nothing was measured.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from minimax_m2.harness import commands_bisect, commands_corpus, commands_nightly, peers
from minimax_m2.harness.case import Case
from minimax_m2.harness.commands_bench import bench, compare
from minimax_m2.harness.commands_commit import predicate
from minimax_m2.harness.commands_corpus import write_smallest
from minimax_m2.harness.commands_drift import drift, write_step
from minimax_m2.harness.commands_known import doctor, generate
from minimax_m2.harness.commands_run import run
from minimax_m2.harness.commands_score import score
from minimax_m2.harness.commands_tune import tune
from minimax_m2.harness.corpus import validated
from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.drift import record as drift_record
from minimax_m2.harness.features import Standing, survey
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.options import FileOption, JsonOption, NameOption, PdbOption, VariantOption
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.record import Record, find_case
from minimax_m2.harness.table import feature_table
from minimax_m2.harness.verdict import Outcome
from minimax_m2.harness.worker import isolated
from minimax_m2.harness.worker_process import named
from minimax_m2.harness.wrong_use import WrongUse, asked

WRONG, MISUSED, NOTHING_MEASURED, BROKEN = 1, 2, 5, 70
RUNS = Path("runs")

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# A pipe has no width; a table cut to 80 columns would lose its figures.
console = Console(width=None if sys.stdout.isatty() else 150)
errors = Console(stderr=True)


def built_in(name: str, device: str = "cpu") -> Provider:
    """A provider of the harness by name, a peer in a process of its own; ValueError lists the known ones."""
    if name == "transformers" and find_spec("transformers") is None:
        raise ValueError("provider 'transformers' is not installed; pip install 'minimax-m2-harness[transformers]'")
    if name in peers.BUILT_IN:
        build: Callable[[str], Provider] = named(peers.source(name))
        return build(device)
    found = peers.source(name)
    if (reason := peers.absence(name)) is not None:
        raise ValueError(f"provider {name!r} is not here: {reason}")
    if device != peers.device_of(name):
        raise ValueError(f"provider {name!r} runs on {peers.device_of(name)}, not on {device}")
    return isolated(found, name=name) if device == "cpu" else peers.on_gpu(name)


def chosen(files: list[Path] | None, names: list[str] | None, device: str = "cpu") -> list[Provider]:
    """The providers a command was asked for; where it was not, ours on every device that is here, and the controls."""
    with asked():
        if (reason := absence(device)) is not None:
            raise WrongUse(f"device {device!r} is not here: {reason}")
        found = [from_file(path, device=device) for path in files or []]
        for provider in found:
            for op, declared in provider.contract.items():
                find_op(op).full_contract(find_op(op).case(), declared)
        found += [built_in(name, device) for name in names or []]
    here = [built_in("ours", name) for name in DEVICES if absence(name) is None]
    return found or [*here, built_in("plain"), *transformers_if_usable()]


def transformers_if_usable() -> list[Provider]:
    """transformers, or nobody and a line that says why where its version is no oracle."""
    from minimax_m2.harness.providers.transformers import OracleRefused

    if find_spec("transformers") is None:
        return []
    try:
        return [built_in("transformers")]
    except (OracleRefused, ImportError) as error:
        errors.print(f"transformers: not here ({error})", markup=False, soft_wrap=True)
        return []


def check_variants(providers: list[Provider], names: list[str] | None) -> None:
    """ValueError for a variant that none of the providers has here."""
    known = dict.fromkeys(name for p in providers for name in p.variants if name)
    for name in names or []:
        if name not in known:
            raise WrongUse(f"variant {name!r} is none of these providers'; here they have {', '.join(known) or 'none'}")


app.command()(run)


@app.command("list")
def list_ops(as_json: JsonOption = False) -> None:
    """List the ops, their outputs and who offers them."""
    providers = chosen(None, None)
    rows = [
        {"op": op.name, "outputs": list(op.outputs), "parts": list(op.parts),
         "providers": [p.name for p in providers if p.offers(op.name)]}
        for op in all_ops().values()
    ]  # fmt: skip
    if as_json:
        console.print_json(data=rows)
        return
    for row in rows:
        fusion = f" = {' + '.join(row['parts'])}" if row["parts"] else ""
        offered = ", ".join(row["providers"]) or "nobody"
        console.print(f"{row['op']}{fusion}  [dim]{', '.join(row['outputs'])}; offered by {offered}[/]")


app.command()(doctor)
app.command()(generate)
app.command()(score)
app.command()(bench)
app.command()(compare)
app.command()(tune)
app.command()(drift)
app.command()(predicate)
app.add_typer(commands_corpus.app, name="corpus")
app.add_typer(commands_bisect.app, name="bisect")
commands_nightly.register(app)


@app.command()
def matrix(
    cases: Annotated[int, typer.Option(min=1, help="sampled cases a path")] = 6, as_json: JsonOption = False
) -> None:
    """Show the fused paths deployments broke in, by device: proven, failing, not here or not yet built."""
    with working() as bar:
        task = bar.add_task("starting", total=None)
        found = survey(
            DEVICES, lambda device: built_in("ours", device), count=cases,
            progress=lambda text: bar.update(task, description=text),
        )  # fmt: skip
    if as_json:
        for f in found:
            typer.echo(json.dumps({
                "path": f.feature, "device": f.device, "tp": f.tp, "dp": f.dp, "ep": f.ep,
                "standing": f.standing.value, "reason": f.reason,
            }))  # fmt: skip
    else:
        console.print(feature_table(found))
    failing = [f for f in found if f.standing is Standing.FAILING]
    if failing:
        finish(WRONG, f"{len(failing)} paths fail", failing[0].reason, "m2check run")
    proven = sum(f.standing is Standing.PROVEN for f in found)
    told = f"{proven} of {len(found)} paths are proven here"
    finish(0, told, "the others are not here or not yet built", "m2check doctor")


@app.command()
def repro(
    case: Annotated[str, typer.Argument(help="a case's JSON, the id of a recorded one, or a drift run's record")],
    provider: FileOption = None,
    with_: NameOption = None,
    variant: VariantOption = None,
    write: Annotated[Path | None, typer.Option(help="shrink a failure, and write its script into this folder")] = None,
    layer: Annotated[int | None, typer.Option(help="of a drift run: this layer")] = None,
    op: Annotated[str, typer.Option(help="of a drift run: this step")] = "",
    pdb: PdbOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge one case again and explain the verdict; of a drift run, write one step as a folder of its own."""
    if case.endswith(drift_record.SUFFIX):
        write_step(Path(case), layer, op, write)
    found, providers = case_of(case), chosen(provider, with_)
    for p in [p for p in providers if write is not None and p.offers(found.op)]:
        told(write_smallest(found, p, (variant or p.variants_of(found.op))[-1], write or Path())[0])
    judge_again(found, providers, variant, pdb=pdb, as_json=as_json)


def case_of(text: str) -> Case:
    """A case by its JSON, or by its id in the recorded runs."""
    with asked():
        if not text.lstrip().startswith("{"):
            return find_case(text, RUNS, report=told)
        return validated(Case.from_json(text))


def judge_again(
    found: Case, providers: list[Provider], variant: list[str] | None, *, pdb: bool, as_json: bool
) -> NoReturn:
    """Judge one case on every cell of its op, and exit with what came of it."""
    check_variants(providers, variant)
    if pdb:
        breakpoint()
    verdicts = [
        judge(found, p, name)
        for p in providers
        if p.offers(found.op)
        for name in p.variants_of(found.op)
        if name in (variant or p.variants)
    ]
    for v in verdicts:
        if as_json:
            typer.echo(Record.of(v, run="repro").json)
            continue
        console.print(f"{v.cell}: {v.outcome.value}, utilisation {v.utilisation:.3f}", markup=False)
        for line in v.evidence:
            console.print(f"  {line}", markup=False)
    judged = [v for v in verdicts if v.outcome is not Outcome.UNSUPPORTED]
    wrong = [v for v in judged if not v.passed]
    if not judged:
        reason = verdicts[0].evidence[0] if verdicts else f"nobody offers {found.op}"
        finish(NOTHING_MEASURED, "nothing was measured", reason, "m2check list")
    sources = {p.name: p.source for p in providers}
    verdict = f"{len(wrong)} of {len(judged)} calls are wrong"
    again = wrong[0].replay(sources[wrong[0].provider]) if wrong else "m2check run"
    finish(WRONG if wrong else 0, verdict, f"case {found.json}", again)


def told(text: str) -> None:
    """Say on standard error what is left out."""
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def working() -> Progress:
    """A progress line on standard error, gone when the work is done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, transient=True)


def finish(code: int, verdict: str, evidence: str, command: str) -> NoReturn:
    """The last three lines: verdict, evidence, the next command to paste."""
    for line in (verdict, evidence, command):
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point: a caller's mistake is one sentence and exit code 2; a fault of ours keeps its traceback."""
    try:
        app()
    except WrongUse as error:
        errors.print(f"m2check: {error}", markup=False, soft_wrap=True)
        raise SystemExit(MISUSED) from None
    except Exception:
        # Python's own exit code, 1, would say that a kernel is wrong.
        traceback.print_exc()
        raise SystemExit(BROKEN) from None


if __name__ == "__main__":
    main()
