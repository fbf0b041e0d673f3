"""``m2check bisect model``: the places of a model that explain its drift; ``commit`` stands in commands_commit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minimax_m2.harness.commands_commit import commit
from minimax_m2.harness.commands_drift import (
    CandidateOption,
    DtypeOption,
    LengthOption,
    ModelOption,
    PlantOption,
    QuantizedOption,
    ReferenceOption,
    TokensOption,
)
from minimax_m2.harness.drift.asking import (
    EXPLAINED,
    FLOAT64,
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
from minimax_m2.harness.drift.bisect import Blame, blamed, confirmed
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.lockstep import ABSENT, Cell
from minimax_m2.harness.drift.record import Asked, Drift, kept, read_drift
from minimax_m2.harness.drift.recorded_calls import recorded_cells
from minimax_m2.harness.drift.recording import Recording
from minimax_m2.harness.drift.tables import number, place
from minimax_m2.harness.drift.trajectory import Subject, Tell
from minimax_m2.harness.drift.transplant import Transplant
from minimax_m2.harness.wrong_use import WrongUse, asked

app = typer.Typer(help="Find the step, or the commit, that a drift comes from.", no_args_is_help=True)


app.command()(commit)


@app.command()
def model(
    candidate: CandidateOption = "",
    reference: ReferenceOption = FLOAT64,
    model: ModelOption = "",
    tokens: TokensOption = "",
    length: LengthOption = 128,
    quantized: QuantizedOption = False,
    dtype: DtypeOption = "bfloat16",
    plant: PlantOption = None,
    run: Annotated[Path | None, typer.Option(help="a drift run's record: the same model, tokens, candidate")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Rank every step alone, then confirm: the candidate only there must drift, everywhere but there must not."""
    from minimax_m2.harness.cli import WRONG, console, finish, working

    if (run is None) == (not candidate):
        raise WrongUse("say --candidate NAME, or --run runs/RUN.drift.json, and not both")
    wanted = Asked(
        candidate=candidate, reference=reference, model=model, tokens=tokens, length=length, quantized=quantized,
        dtype=dtype, plant=tuple(plant or ()),
    )  # fmt: skip
    if run is not None:
        with asked():
            wanted = read_drift(run).asked
    subject = subject_of(wanted)
    if is_streamed(subject):
        raise WrongUse(f"--model {wanted.model}: its layers are not kept for whole runs; ask m2check drift")
    with working() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        one, cells, found = (of_record if is_recorded(wanted.candidate) else of_candidate)(subject, wanted, tell)
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str))
    else:
        console.print(trials(found))
    path = run or kept(Drift.of(subject, one, wanted, cells=cells))
    again = f"m2check drift {wanted.option}"
    if not found.trials[0].drifts and not found.cells:
        finish(0, "there is no drift to explain", "every step is within its budget, the whole within its band", again)
    told = told_of(found)
    if found.cells:
        layer, step = found.cells[0].place
        if not is_recorded(wanted.candidate):
            again = f"m2check repro {path} --layer {layer} --op {step}"
        worst = found.cells[0]
        evidence = f"{number(worst.used)} x its budget; {worst.explanation or worst.evidence[0]}"
    else:
        evidence = "every step alone is within its budget: what is wrong shows on the model's own numbers only"
    finish(WRONG, told, evidence, again)


Searched = tuple[Candidate | Recording, tuple[Cell, ...], Blame]


def of_candidate(subject: Subject, wanted: Asked, tell: Tell) -> Searched:
    """Run the candidate at some places and the reference at the others."""
    one, leader = candidate_of(wanted, subject.config.num_hidden_layers), reference_of(wanted)
    cells = lockstep_cells(subject, one, leader, tell)
    return one, cells, blamed(cells, one, beside_candidate(subject, one, tell), rest=leader, tell=tell)


def of_record(subject: Subject, wanted: Asked, tell: Tell) -> Searched:
    """Run the formula with the errors that the record has at some places."""
    one, whole = recording_for(wanted, subject), replace(subject, decoded=0)
    cells, moved = tuple(recorded_cells(whole, one, tell, explain=EXPLAINED)), Transplant(whole, one)
    if all(cell.outcome == ABSENT for cell in cells):
        raise WrongUse(f"{wanted.candidate}: no step has both its input and its output recorded; name more [taps]")
    beside = beside_of(whole, moved.declares, moved.offered, tell)
    return one, cells, confirmed(cells, moved.answers, beside, offered=moved.offered, tell=tell)


def trials(found: Blame) -> Table:
    """The runs that confirm."""
    table = Table(title="the candidate at some places, the reference elsewhere", title_justify="left")
    for name in ("candidate", "places", "drifts", "leaves its band at", "error at the logits", "right models"):
        table.add_column(name, justify="right" if name == "error at the logits" else "left")
    for trial in found.trials:
        places = ", ".join(f"{layer} {step}" for layer, step in trial.places[:4])
        run = trial.found
        band = f"{run.low[-1]:.1e}..{run.high[-1]:.1e}"
        row = (trial.told, places, "yes" if trial.drifts else "no", place(run), f"{run.curve[-1]:.2e}", band)
        table.add_row(*row, style="red" if trial.drifts else "")
    return table


def told_of(found: Blame) -> str:
    """The verdict in a sentence."""
    places = ", ".join(f"layer {layer}, {step}" for layer, step in found.places[:4])
    if found.explains:
        return f"{places} {'explains' if len(found.places) == 1 else 'explain'} all of the drift"
    if not found.trials[0].drifts:
        return f"{places} is wrong, and the whole run does not feel it"
    if not found.places:
        return "it drifts, and the places that it offers do not explain it: the steps around them do"
    return f"{places} drifts, and so does the rest"
