"""Whose steps are on trial: a provider, and for single places of a model another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from minimax_m2.harness.op import Declared, all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.reference.table import STEPS

Place = tuple[int, str]
"""A layer, and the name of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A provider's steps, with those of others at some places.

    variant  the code path of the provider, where it has several
    planted  who answers instead at a place
    """

    provider: Provider
    variant: str = ""
    planted: Mapping[Place, Provider] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.provider.name}:{self.variant}" if self.variant else self.provider.name

    def at(self, place: Place) -> Provider:
        """Who answers at a place."""
        return self.planted.get(place, self.provider)

    def variant_of(self, provider: Provider) -> str:
        """The code path of whoever answers."""
        return self.variant if provider is self.provider else provider.variants[-1]

    def declared(self, op: str, place: Place) -> Declared:
        """Where whoever answers says that it rounds."""
        return self.at(place).contract.get(op, {})

    def offered(self) -> Collection[str]:
        """The steps that it offers anywhere; taps stand at them."""
        everybody = (self.provider, *self.planted.values())
        return [op for op in STEPS if op in all_ops() and any(p.offers(op) for p in everybody)]

    def function(self, op: str, place: Place) -> Callable[..., Any] | None:
        """What answers a call of ``op`` at a place, or None where that is left to the reference."""
        return self.at(place).functions(op)
