"""``m2check drift``: which layer and which step leave the reference, and what that does to the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimax_m2.harness.drift.answers import answers_of, exact_answers
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import planted, read_fault
from minimax_m2.harness.drift.lockstep import Cell
from minimax_m2.harness.drift.record import SUFFIX, Drift
from minimax_m2.harness.drift.running import FREE, PINNED, Beside, Found
from minimax_m2.harness.drift.subjects import checkpoint_subject, tokens_id
from minimax_m2.harness.drift.tables import first_odd, heat, ranking, whole_runs
from minimax_m2.harness.drift.trajectory import Subject, Tell, Trajectory
from minimax_m2.harness.provider import from_file
from minimax_m2.harness.wrong_use import asked

FLOAT64 = "fp64"
# Whoever is wrong everywhere is explained where he is most wrong.
EXPLAINED = 3

CandidateOption = Annotated[str, typer.Option(help="NAME, NAME:VARIANT, or a .py file, which is code and runs")]
ReferenceOption = Annotated[str, typer.Option(help="fp64, or the provider whose way the steps are fed from")]
ModelOption = Annotated[Path | None, typer.Option(help="a checkpoint's folder; default: tiny-m2")]
TokensOption = Annotated[Path | None, typer.Option(help="a JSON list of token ids; default: the folder's own text")]
PlantOption = Annotated[
    list[str] | None, typer.Option("--plant", help="LAYER=FILE: this file's step in one layer (repeatable)")
]
LengthOption = Annotated[int, typer.Option(min=2, help="so many tokens; the last is decoded")]


def candidate_of(text: str) -> Candidate:
    """A candidate by ``NAME``, ``NAME:VARIANT`` or file, else in its best variant; WrongUse says what there is."""
    # Here, because cli registers these commands.
    from minimax_m2.harness.cli import built_in

    with asked():
        if text.endswith(".py"):
            provider, variant = from_file(text), ""
        else:
            name, _, variant = text.partition(":")
            provider = built_in(name)
        if variant and variant not in provider.variants:
            known = ", ".join(v for v in provider.variants if v) or "none"
            raise ValueError(f"provider {provider.name!r} has no variant {variant!r}; here it has {known}")
        return Candidate(provider=provider, variant=variant or provider.variants[-1])


def with_planted(candidate: Candidate, plants: list[str], layers: int) -> Candidate:
    """The candidate with files' steps in single layers."""
    for plant in plants:
        layer, _, file = plant.partition("=")
        with asked():
            if not layer.isdigit() or not 0 <= int(layer) < layers or not Path(file).is_file():
                raise ValueError(f"--plant {plant!r}: write LAYER=FILE with a layer of 0..{layers - 1} and a .py file")
            candidate = planted(candidate, (int(layer), read_fault(Path(file))))
    return candidate


def drift(
    candidate: CandidateOption,
    reference: ReferenceOption = FLOAT64,
    model: ModelOption = None,
    tokens: TokensOption = None,
    length: LengthOption = 128,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="only every step alone")] = False,
    pinned: Annotated[bool, typer.Option("--pinned", help="only the whole run, with the reference's experts")] = False,
    free: Annotated[bool, typer.Option("--free", help="only the whole run")] = False,
    all_: Annotated[bool, typer.Option("--all", help="all three, as without any of these")] = False,
    quantized: Annotated[bool, typer.Option("--quantized", help="keep e4m3 weights as they are stored")] = False,
    plant: PlantOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the record instead of tables")] = False,
) -> None:
    """Find the layer and the step whose numbers leave the reference, and say what the tokens make of it."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, RUNS, WRONG, finish, working
    from minimax_m2.harness.run import run_name

    with asked():
        subject = checkpoint_subject(model, tokens, length=length, keep_quantized=quantized)
    one = with_planted(candidate_of(candidate), plant or [], subject.config.num_hidden_layers)
    peer = None if reference == FLOAT64 else candidate_of(reference)
    chosen = {mode for mode, asked_for in ((PINNED, pinned), (FREE, free)) if asked_for}
    everything = all_ or not (lockstep or chosen)
    with working() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        cells = lockstep_cells(subject, one, peer, tell) if lockstep or everything else ()
        runs = whole(subject, one, (FREE, PINNED) if everything else tuple(sorted(chosen)), tell)
    found = Drift(
        run=run_name(), model=subject.name, layers=subject.config.num_hidden_layers, tokens=len(subject.ids),
        tokens_id=tokens_id(subject.ids), dtype=str(subject.dtype).removeprefix("torch."), candidate=one.name,
        reference=reference, cells=cells, runs=runs,
        option=option(candidate, model, tokens, length, quantized, plant or []),
    )  # fmt: skip
    RUNS.mkdir(exist_ok=True)
    path = RUNS / f"{found.run}{SUFFIX}"
    path.write_text(found.json)
    if as_json:
        typer.echo(found.json)
    else:
        show(found)
    if not found.own and not runs:
        finish(NOTHING_MEASURED, "nothing was measured", f"{one.name} offers no step of the model", "m2check list")
    left = [run for run in runs if run.leaves is not None]
    if found.wrong:
        worst = found.wrong[0]
        told = f"layer {worst.layer}, {worst.step}: {worst.used:.3g} x its budget; {len(found.wrong)} places are wrong"
        evidence = worst.explanation or worst.evidence[0]
        finish(WRONG, told, evidence, f"m2check repro {path} --layer {worst.layer} --op {worst.step}")
    if left:
        at = len(left[0].curve) - 1 == left[0].leaves
        told = (
            f"with the reference's experts it strays further than right models, from {'the logits' if at else 'layer'}"
        )
        finish(
            WRONG, told + ("" if at else f" {left[0].leaves} on"), str(path), f"m2check drift {found.option} --lockstep"
        )
    told = f"all {found.own} places of {one.name} are within their budgets" if cells else "it strays as right models do"
    finish(0, told, f"record: {path}", "m2check run")


def lockstep_cells(subject: Subject, one: Candidate, peer: Candidate | None, tell: Tell) -> tuple[Cell, ...]:
    """Every step alone, and what the worst wrong ones equal."""
    answers = exact_answers if peer is None else answers_of(peer)
    trajectory = Trajectory(subject, offered=one.offered(), reference=answers, tell=tell)
    cells = list(trajectory.cells(one, tell=tell))
    wrong = sorted((cell for cell in cells if cell.is_wrong), key=lambda cell: -cell.used)[:EXPLAINED]
    return tuple(trajectory.explained(cell, one) if cell in wrong else cell for cell in cells)


def whole(subject: Subject, one: Candidate, modes: tuple[str, ...], tell: Tell) -> tuple[Found, ...]:
    """Whole runs in some modes."""
    if not modes:
        return ()
    beside = Beside(subject, tell=tell)
    return tuple(beside.held(one, mode) for mode in modes)


def option(
    candidate: str, model: Path | None, tokens: Path | None, length: int, quantized: bool, plants: list[str]
) -> str:
    """What a command line must say to look at the same again."""
    parts = [f"--candidate {candidate}"]
    parts += [] if model is None else [f"--model {model}"]
    parts += [] if tokens is None else [f"--tokens {tokens}"]
    parts += [f"--length {length}", *(["--quantized"] if quantized else []), *(f"--plant {p}" for p in plants)]
    return " ".join(parts)


def show(found: Drift) -> None:
    """Print a drift run."""
    from minimax_m2.harness.cli import console

    if found.cells:
        console.print(heat(found))
        console.print(ranking(found))
    if found.runs:
        console.print(whole_runs(found))
        for run in found.runs:
            console.print(first_odd(run), markup=False, highlight=False)
