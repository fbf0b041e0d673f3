"""Faults of known place: a provider file with one op and the step that it is planted in.

A file holds ``STEP``, the name of a step, and the op of that step, wrong in one way; its first line says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from minimax_m2.harness.drift.candidate import Candidate, Place
from minimax_m2.harness.museum import HELD_OUT, load
from minimax_m2.harness.provider import Provider, from_object


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault.

    step      where in a layer it belongs
    told      what it does
    held_out  whether it was written before the detector
    """

    name: str
    step: str
    told: str
    provider: Provider
    held_out: bool


def read_fault(path: Path) -> Fault:
    """Run a fault's file, which is code of this checkout. Raises ValueError where it names no step."""
    module = load(path)
    step = getattr(module, "STEP", None)
    if not isinstance(step, str):
        raise ValueError(f"{path.name} names no step: write STEP = 'o_proj', or another step of a layer")
    told = (module.__doc__ or "").strip().splitlines()
    return Fault(
        name=path.stem,
        step=step,
        told=told[0] if told else "",
        provider=from_object(module, name=path.stem, source=str(path)),
        held_out=path.parent.name == HELD_OUT,
    )


def read_faults(folder: Path) -> list[Fault]:
    """Every fault below a folder."""
    return [read_fault(path) for path in sorted(folder.rglob("*.py"))]


def planted(candidate: Candidate, *faults: tuple[int, Fault]) -> Candidate:
    """The candidate with faults in layers of it; the contract at those places stays the candidate's own.

    Raises ValueError for two faults at one place.
    """
    places: dict[Place, Provider] = dict(candidate.planted)
    for layer, fault in faults:
        place = (layer, fault.step)
        if place in places:
            raise ValueError(f"{fault.name} at layer {layer}, {fault.step}: another provider stands there already")
        places[place] = replace(fault.provider, device=candidate.provider.device)
    return replace(candidate, planted=places)
