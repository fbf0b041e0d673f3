"""From what a command was asked to the model, the candidate and the calls that it means."""

from __future__ import annotations

from pathlib import Path

from minimax_m2.harness.drift.answers import Answer, answers_of, exact_answers
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import planted, read_fault
from minimax_m2.harness.drift.lockstep import Cell
from minimax_m2.harness.drift.record import Asked
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Subject, Tell, Trajectory
from minimax_m2.harness.provider import from_file
from minimax_m2.harness.wrong_use import asked

FLOAT64 = "fp64"
# Whoever is wrong everywhere is explained where he is most wrong.
EXPLAINED = 3


def subject_of(wanted: Asked) -> Subject:
    """The model and the tokens. WrongUse says what is missing."""
    with asked():
        return checkpoint_subject(
            Path(wanted.model) if wanted.model else None,
            Path(wanted.tokens) if wanted.tokens else None,
            length=wanted.length,
            keep_quantized=wanted.quantized,
        )


def provider_candidate(text: str) -> Candidate:
    """A candidate by ``NAME``, ``NAME:VARIANT`` or file, else in its best variant. WrongUse says what there is."""
    # Here, because cli registers the commands that ask.
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


def candidate_of(wanted: Asked, layers: int) -> Candidate:
    """The candidate, with files' steps in single layers."""
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
    subject: Subject, candidate: Candidate, reference: Answer, tell: Tell, *, explain: bool = True
) -> tuple[Cell, ...]:
    """Every step alone, and what the worst wrong ones equal."""
    trajectory = Trajectory(subject, offered=candidate.offered(), reference=reference, tell=tell)
    cells = list(trajectory.cells(candidate, tell=tell))
    wrong = sorted((cell for cell in cells if cell.is_wrong), key=lambda cell: -cell.used)[: EXPLAINED * explain]
    return tuple(trajectory.explained(cell, candidate) if cell in wrong else cell for cell in cells)
