"""From what a command was asked to the model, the candidate and the calls that it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.drift.adapters import in_dtype, over_ranks
from minimax_m2.harness.drift.answers import Answer, answers_of, exact_answers
from minimax_m2.harness.drift.budgeted_answers import Declares, budgeted_answers
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import planted, read_fault
from minimax_m2.harness.drift.lockstep import Cell, Judge
from minimax_m2.harness.drift.record import Asked
from minimax_m2.harness.drift.recording import Recording, recording_of
from minimax_m2.harness.drift.resuming import keep, resumed
from minimax_m2.harness.drift.running import Beside
from minimax_m2.harness.drift.spent import Meter
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Halfway, Subject, Tell, Trajectory, walk
from minimax_m2.harness.drift.wide import M2, DrawnLayers, wide_subject
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.wrong_use import WrongUse, asked

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FLOAT64, WIDE = "fp64", "m2-width"
# transformers as it runs, heard by hooks, beside its ops called one by one, which are "transformers".
HOOKED = {"transformers-modules": Path(__file__).with_name("transformers.toml")}
# Whoever is wrong everywhere is explained where he is most wrong.
EXPLAINED = 3


def subject_of(wanted: Asked) -> Subject:
    """The model and the tokens. WrongUse says what is missing."""
    name, _, layers = wanted.model.partition(":")
    with asked():
        if name == WIDE:
            if layers and not (layers.isdigit() and int(layers) > 0):
                raise ValueError(f"--model {wanted.model!r}: write {WIDE} or {WIDE}:LAYERS")
            if wanted.dtype != "bfloat16":
                raise ValueError(f"--dtype {wanted.dtype}: {WIDE} is drawn in bfloat16 and e4m3")
            return wide_subject(layers=int(layers or M2.num_hidden_layers), length=wanted.length)
        return checkpoint_subject(
            Path(wanted.model) if wanted.model else None,
            Path(wanted.tokens) if wanted.tokens else None,
            length=wanted.length,
            keep_quantized=wanted.quantized,
            dtype=_dtype(wanted.dtype),
        )


def beside_of(subject: Subject, declares: Declares, offered: Sequence[str], tell: Tell) -> Beside:
    """The reference's run and right runs beside it; in float32 these err as the kernels' own contracts allow."""
    if subject.dtype != torch.float32:
        return Beside(subject, tell=tell)
    return Beside(subject, right=partial(budgeted_answers, declares), offered=offered, tell=tell)


def beside_candidate(subject: Subject, candidate: Candidate, tell: Tell) -> Beside:
    """What a candidate's whole runs are held against."""
    offered = list(candidate.offered())
    return beside_of(subject, lambda call: candidate.declared(call.op.name, call.place), offered, tell)


def is_recorded(candidate: str) -> bool:
    """Whether a candidate only left a record: a naming file, ours of transformers' modules among them."""
    return candidate in HOOKED or candidate.endswith(".toml")


def recording_for(wanted: Asked, subject: Subject) -> Recording:
    """What the candidate left. WrongUse for what cannot be asked of it, and for what its files lack."""
    if wanted.plant or wanted.reference != FLOAT64:
        raise WrongUse(f"{wanted.candidate} is a record: nothing can be planted in it, no other reference fed to it")
    if is_streamed(subject):
        raise WrongUse(f"--model {wanted.model}: its layers are not kept, and a record is held against all of them")
    with asked():
        folder = Path(wanted.model) if wanted.model else tiny_m2() or Path()
        return recording_of(HOOKED.get(wanted.candidate, Path(wanted.candidate)), subject, folder=folder)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def provider_candidate(text: str) -> Candidate:
    """A candidate by ``NAME``, ``NAME:VARIANT`` or file, else in its best variant. WrongUse says what there is.

    Behind it may stand, each after an ``@``, a device, ``tp2`` for its calls shared by two ranks, a dtype.
    """
    # Here, because cli registers the commands that ask.
    from minimax_m2.harness.cli import built_in

    whose, *ways = text.split("@")
    with asked():
        device = next((way for way in ways if way in DEVICES), "cpu")
        if (reason := absence(device)) is not None:
            raise ValueError(f"device {device!r} is not here: {reason}")
        if whose.endswith(".py"):
            provider, variant = from_file(whose, device=device), ""
        else:
            name, _, variant = whose.partition(":")
            provider = built_in(name, device)
        for way in ways:
            provider = _otherwise(provider, way, text)
        if variant and variant not in provider.variants:
            known = ", ".join(v for v in provider.variants if v) or "none"
            raise ValueError(f"provider {provider.name!r} has no variant {variant!r}; here it has {known}")
        return Candidate(provider=provider, variant=variant or provider.variants[-1])


def _otherwise(provider: Provider, way: str, text: str) -> Provider:
    """The provider as one word behind an ``@`` says. Raises ValueError for a word that says nothing."""
    if way in DEVICES:
        return provider
    if way in DTYPES:
        return in_dtype(provider, DTYPES[way])
    if way.startswith("tp") and way[2:].isdigit():
        return over_ranks(provider, int(way[2:]))
    raise ValueError(f"{text!r}: @{way} is unknown; write @{', @'.join((*DEVICES, 'tp2', *DTYPES))}")


def candidate_of(wanted: Asked, layers: int) -> Candidate:
    """The candidate, with files' steps in single layers."""
    if is_recorded(wanted.candidate):
        told = "ask m2check drift, or m2check bisect model, of it"
        raise WrongUse(f"{wanted.candidate} is a record, whose steps cannot be called: {told}")
    candidate = provider_candidate(wanted.candidate)
    for plant in wanted.plant:
        layer, _, file = plant.partition("=")
        with asked():
            if not layer.isdigit() or not 0 <= int(layer) < layers or not Path(file).is_file():
                raise ValueError(f"--plant {plant!r}: write LAYER=FILE with a layer of 0..{layers - 1} and a .py file")
            candidate = planted(candidate, (int(layer), read_fault(Path(file))))
    return candidate


def reference_of(wanted: Asked) -> Answer:
    """Who leads: the float64 formula, or a provider."""
    return exact_answers if wanted.reference == FLOAT64 else answers_of(provider_candidate(wanted.reference))


def lockstep_cells(
    subject: Subject, candidate: Candidate, reference: Answer, tell: Tell, *, resume: Resume | None = None,
    meter: Meter | None = None,
) -> tuple[Cell, ...]:  # fmt: skip
    """Every step alone, and what the worst wrong ones equal. WrongUse for a run that is whole before it could end."""
    if is_streamed(subject):
        return streamed_cells(subject, candidate, reference, tell, resume=resume, meter=meter)
    if resume is not None:
        raise WrongUse(f"--resume {resume.path}: only --model {WIDE} takes so long that it is kept layer by layer")
    trajectory = Trajectory(subject, offered=candidate.offered(), reference=reference, tell=tell)
    cells = list(trajectory.cells(candidate, tell=tell))
    wrong = sorted((cell for cell in cells if cell.is_wrong), key=lambda cell: -cell.used)[:EXPLAINED]
    return tuple(trajectory.explained(cell, candidate) if cell in wrong else cell for cell in cells)


def is_streamed(subject: Subject) -> bool:
    """Whether its layers are made as they are asked for: then nothing of them may be kept."""
    return isinstance(subject.weights.layers, DrawnLayers)


class Resume(NamedTuple):
    """Where a run is kept, and the command line that it belongs to."""

    path: Path
    asked: str


def streamed_cells(
    subject: Subject, candidate: Candidate, reference: Answer, tell: Tell, *, resume: Resume | None = None,
    meter: Meter | None = None,
) -> tuple[Cell, ...]:  # fmt: skip
    """Judge each call as it comes; the first wrong ones are explained, since no call is there to come back to.

    With ``resume`` a file holds what is done behind each layer, and is gone when all is done; ``meter`` is then told
    what earlier parts took.
    """
    judge, cells, begin, meter = Judge(), list[Cell](), None, meter or Meter()
    if resume is not None and resume.path.is_file():
        with asked():
            begin, cells, meter.before = resumed(resume.path, asked=resume.asked)

    def behind(where: Halfway) -> None:
        if resume is not None:
            keep(resume.path, where, cells, asked=resume.asked, spent=meter.spent)

    def visit(call: Call) -> None:
        cell = judge.cell(call, candidate)
        if cell.is_wrong and sum(bool(c.explanation) for c in cells) < EXPLAINED:
            cell = replace(cell, explanation=judge.explanation(call, candidate))
        cells.append(cell)

    def next_layer(text: str, share: float) -> None:
        judge.forget()
        tell(text, share)

    offered = candidate.offered()
    walk(subject, visit, offered=offered, reference=reference, tell=next_layer, begin=begin, keep=behind)
    if resume is not None:
        resume.path.unlink(missing_ok=True)
    return tuple(cells)
