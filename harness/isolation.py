"""Providers in processes of their own for a whole run: what a command may ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minimax_m2.harness import peers
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.worker import Ended, isolated
from minimax_m2.harness.wrong_use import WrongUse, asked


@dataclass(frozen=True, slots=True)
class Isolation:
    """How long a call may take and how much memory it may have in a process of its provider's own."""

    deadline: float
    memory: int

    def of(self, source: str, name: str) -> Provider:
        """A provider in a process of its own; WrongUse where it cannot be loaded."""
        try:
            return isolated(source, name=name, deadline=self.deadline, memory=self.memory)
        except Ended as error:
            raise WrongUse(f"provider {name!r} cannot be loaded: {error}") from error


def chosen_apart(
    files: list[Path] | None, names: list[str] | None, device: str, isolation: Isolation
) -> list[Provider]:
    """The providers a command was asked for, or ours and the plain control, each in a process of its own."""
    if device != "cpu":
        raise WrongUse(f"--isolate runs providers on cpu, not on {device}: tensors of a {device} cannot cross")
    with asked():
        built = names or ([] if files else ["ours", "plain"])
        found = [isolation.of(str(path), path.stem) for path in files or []]
        return found + [isolation.of(peers.source(name), name) for name in built]
