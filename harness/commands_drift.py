"""``m2check drift``: which layer and which step leave the reference, and what that does to the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer

from minimax_m2.harness.drift.asking import (
    EXPLAINED,
    FLOAT64,
    Resume,
    beside_candidate,
    beside_of,
    candidate_of,
    is_recorded,
    is_streamed,
    lockstep_cells,
    recording_for,
    reference_of,
    subject_of,
)
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.picture import picture
from minimax_m2.harness.drift.record import Asked, Drift, kept, read_drift
from minimax_m2.harness.drift.recorded_calls import recorded_cells, recorded_run
from minimax_m2.harness.drift.repro import write_repro
from minimax_m2.harness.drift.running import FREE, PINNED, Found
from minimax_m2.harness.drift.spent import Meter
from minimax_m2.harness.drift.tables import first_odd, heat, place, ranking, whole_runs
from minimax_m2.harness.drift.trajectory import Subject, Tell, walk
from minimax_m2.harness.drift.transplant import Transplant
from minimax_m2.harness.repro import NotWritten
from minimax_m2.harness.wrong_use import WrongUse, asked

CandidateOption = Annotated[
    str,
    typer.Option(help="NAME[:VARIANT], a .py file, which is code; @gpu, @tp2, @float16 behind; or a .toml of a dump"),
]
ReferenceOption = Annotated[str, typer.Option(help="fp64, or the provider whose way the steps are fed from")]
ModelOption = Annotated[str, typer.Option(help="a checkpoint's folder, or m2-width[:LAYERS], drawn; default: tiny-m2")]
TokensOption = Annotated[str, typer.Option(help="a JSON list of token ids; default: the folder's own text")]
LengthOption = Annotated[int, typer.Option(min=2, help="so many tokens; the last is decoded")]
QuantizedOption = Annotated[bool, typer.Option("--quantized", help="keep e4m3 weights as they are stored")]
DtypeOption = Annotated[str, typer.Option(help="of the model: bfloat16, float16 or float32")]
PlantOption = Annotated[
    list[str] | None, typer.Option("--plant", help="LAYER=FILE: this file's step in one layer (repeatable)")
]


def drift(
    candidate: CandidateOption,
    reference: ReferenceOption = FLOAT64,
    model: ModelOption = "",
    tokens: TokensOption = "",
    length: LengthOption = 128,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="only every step alone")] = False,
    pinned: Annotated[bool, typer.Option("--pinned", help="only the whole run, with the reference's experts")] = False,
    free: Annotated[bool, typer.Option("--free", help="only the whole run")] = False,
    all_: Annotated[bool, typer.Option("--all", help="all three, as without any of these")] = False,
    quantized: QuantizedOption = False,
    dtype: DtypeOption = "bfloat16",
    plant: PlantOption = None,
    resume: Annotated[Path | None, typer.Option(help="of m2-width: keep what is done here, go on from it")] = None,
    picture_: Annotated[Path | None, typer.Option("--picture", help="write heatmap and curve as an SVG file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the record instead of tables")] = False,
) -> None:
    """Find the layer and the step whose numbers leave the reference, and say what the tokens make of it."""
    from minimax_m2.harness.cli import working

    wanted = Asked(
        candidate=candidate, reference=reference, model=model, tokens=tokens, length=length, quantized=quantized,
        dtype=dtype, plant=tuple(plant or ()),
    )  # fmt: skip
    everything = all_ or not (lockstep or pinned or free)
    modes = [mode for mode, chosen in ((FREE, free), (PINNED, pinned)) if chosen or everything]
    subject = subject_of(wanted)
    if modes and is_streamed(subject):
        raise WrongUse(f"--model {model}: its layers are not kept, so only --lockstep can be asked of it")
    if is_recorded(candidate) and pinned:
        raise WrongUse(f"{candidate} is a record: its experts are chosen; ask --lockstep or --free of it")
    with working() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        if is_recorded(candidate):
            found = recorded(subject, wanted, modes, tell, lockstep=lockstep or everything)
        else:
            found = called(subject, wanted, modes, tell, lockstep=lockstep or everything, resume=resume)
    path = kept(found)
    if picture_ is not None:
        picture_.write_text(picture(found))
    if as_json:
        typer.echo(found.json)
    else:
        show(found)
    conclude(found, path)


def called(
    subject: Subject, wanted: Asked, modes: list[str], tell: Tell, *, lockstep: bool, resume: Path | None
) -> Drift:
    """Look at a candidate whose steps can be called."""
    meter, leader = Meter(), reference_of(wanted)
    one = candidate_of(wanted, subject.config.num_hidden_layers)
    kept_in = Resume(resume, wanted.option) if resume is not None else None
    cells = lockstep_cells(subject, one, leader, tell, resume=kept_in, meter=meter) if lockstep else ()
    beside = beside_candidate(subject, one, tell) if modes else None
    runs = tuple(beside.held(one, mode) for mode in modes) if beside else ()
    return Drift.of(subject, one, wanted, cells=cells, runs=runs, spent=meter.spent)


def recorded(subject: Subject, wanted: Asked, modes: list[str], tell: Tell, *, lockstep: bool) -> Drift:
    """Look at what a candidate left of one pass. WrongUse where only a whole run is asked for and it has none."""
    from minimax_m2.harness.cli import errors

    tell("the candidate's own pass", 0.0)
    meter = Meter()
    one = recording_for(wanted, subject)
    cells = tuple(recorded_cells(subject, one, tell, explain=EXPLAINED)) if lockstep else ()
    runs: tuple[Found, ...] = ()
    try:
        if FREE in modes:
            run, moved = recorded_run(subject, one), Transplant(subject, one)
            runs = (beside_of(subject, moved.declares, moved.offered, tell).found(run, FREE),)
    except ValueError as error:
        if not lockstep:
            raise WrongUse(str(error)) from error
        errors.print(f"no whole run: {error}", markup=False, highlight=False, soft_wrap=True)
    return Drift.of(subject, one, wanted, cells=cells, runs=runs, spent=meter.spent)


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
    console.print(str(found.spent), highlight=False)


def conclude(found: Drift, path: Path) -> None:
    """Exit with the verdict, its evidence and the next command."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, finish

    if found.cells and not found.own:
        finish(NOTHING_MEASURED, "nothing was measured", f"{found.candidate} offers no step of it", "m2check list")
    if found.wrong:
        worst = found.wrong[0]
        count = f"{len(found.wrong)} places are" if len(found.wrong) > 1 else "one place is"
        told = f"layer {worst.layer}, {worst.step}: {worst.used:.3g} x its budget; {count} wrong"
        again = f"m2check repro {path} --layer {worst.layer} --op {worst.step}"
        if is_recorded(found.asked.candidate):
            again = f"m2check drift {found.asked.option} --lockstep --json"
        finish(WRONG, told, worst.explanation or worst.evidence[0], again)
    if drifted := [run for run in found.runs if run.has_drifted]:
        again = f"m2check bisect model {found.asked.option}"
        if is_recorded(found.asked.candidate):
            again = f"m2check drift {found.asked.option} --json"
        finish(WRONG, strayed(drifted[0]), f"record: {path}", again)
    told = f"all {found.own} places of {found.candidate} are within their budgets" if found.cells else ""
    finish(0, told or "it strays no further than right models", f"record: {path}", "m2check run")


def strayed(run: Found) -> str:
    """How a whole run left what right models do."""
    if run.leaves is not None:
        whose = "the reference's experts" if run.mode == PINNED else "its own experts"
        return f"with {whose} it strays further than right models, first at {place(run)}"
    flip = next(flip for flip in run.flips if not flip.is_tie)
    return (
        f"layer {flip.layer}, token {flip.token}: it chose expert {flip.chosen} for {flip.left}, whose score is "
        f"{flip.gap:.3g} larger where right models stray {flip.room:.3g}"
    )


def write_step(path: Path, layer: int | None, step: str, folder: Path | None) -> NoReturn:
    """``m2check repro DRIFT --layer L --op O``: one step of a drift run as a folder that fails by itself."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, finish, working

    with asked():
        found = read_drift(path)
    worst = found.wrong[0] if found.wrong else None
    layer, step = (layer, step) if layer is not None and step else worst.place if worst else (layer, step)
    known = {cell.place: cell.phase for cell in reversed(found.ranked)}
    if layer is None or (layer, step) not in known:
        steps = ", ".join(found.columns)
        raise WrongUse(
            f"--layer {layer} --op {step!r} is no place of {path}; layers 0..{found.layers - 1}, ops {steps}"
        )
    subject = subject_of(found.asked)
    one = candidate_of(found.asked, found.layers)
    target = folder or Path("repro") / f"L{layer}_{step}"
    again = f"m2check drift {found.asked.option} --lockstep"
    with working() as bar:
        task = bar.add_task(f"layer {layer}, {step}", total=None)
        calls: list[Call] = []
        place, phase = (layer, step), known[layer, step]

        def visit(call: Call) -> None:
            if call.place == place and call.phase == phase:
                calls.append(call)

        walk(subject, visit, offered=one.offered(), reference=reference_of(found.asked))
        bar.update(task, description="fewer rows and columns")
        try:
            with torch.inference_mode():
                write_repro(calls[0], one, target)
        except NotWritten as error:
            finish(NOTHING_MEASURED, "nothing was written", str(error), again)
    size = sum(file.stat().st_size for file in target.iterdir())
    finish(
        0, f"{target} fails by itself", f"{size / 1000:.0f} kB; run before it was written", f"python {target}/repro.py"
    )
