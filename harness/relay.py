"""Communicators that stand before another one: what counts, watches or spoils collectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from minimax_m2.reference.communicator import Communicator


class Relay:
    """Passes every collective on; a subclass overrides ``call``, and ``over`` where it has settings of its own."""

    def __init__(self, inner: Communicator) -> None:
        self.inner = inner

    @property
    def rank(self) -> int:
        """The inner communicator's."""
        return self.inner.rank

    @property
    def size(self) -> int:
        """The inner communicator's."""
        return self.inner.size

    def all_reduce(self, x: Tensor, *, label: str = "") -> Tensor:
        """As the protocol says."""
        return self.call("all_reduce", x, label)

    def all_gather(self, x: Tensor, *, label: str = "") -> Tensor:
        """As the protocol says."""
        return self.call("all_gather", x, label)

    def reduce_scatter(self, x: Tensor, *, label: str = "") -> Tensor:
        """As the protocol says."""
        return self.call("reduce_scatter", x, label)

    def all_to_all(self, parts: Sequence[Tensor], *, label: str = "") -> list[Tensor]:
        """As the protocol says."""
        return self.call("all_to_all", parts, label)

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        """The inner communicator's lines, each behind a relay of this kind."""
        return [self.over(line) for line in self.inner.grid(shape)]

    def call(self, kind: str, payload: Any, label: str) -> Any:
        """Call the collective ``kind``."""
        return getattr(self.inner, kind)(payload, label=label)

    def over(self, inner: Communicator) -> Communicator:
        """A relay like this one before ``inner``."""
        return type(self)(inner)


class Sent(NamedTuple):
    """One collective: ``bytes`` is what this rank handed in, ``ranks`` how many took part."""

    kind: str
    label: str
    bytes: int
    ranks: int

    @property
    def on_the_wire(self) -> int:
        """Bytes that a rank sends where ranks form a ring, the least that any algorithm sends.

        all_reduce 2 (n - 1) / n, reduce_scatter (n - 1) / n, all_gather n - 1 times what it hands in
        """
        others = self.ranks - 1
        if self.kind == "all_gather":
            return self.bytes * others
        return self.bytes * others * (2 if self.kind == "all_reduce" else 1) // self.ranks


@dataclass
class Ledger(Relay):
    """Writes down every collective of more than one rank."""

    inner: Communicator
    entries: list[Sent]

    def call(self, kind: str, payload: Any, label: str) -> Any:
        """Call it, and write down what went in."""
        if self.size > 1:
            tensors = [payload] if isinstance(payload, Tensor) else list(payload)
            size = sum(x.numel() * x.element_size() for x in tensors)
            self.entries.append(Sent(kind, label, size, self.size))
        return super().call(kind, payload, label)

    def over(self, inner: Communicator) -> Communicator:
        """Write to the same list."""
        return Ledger(inner, self.entries)
