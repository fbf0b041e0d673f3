"""A roll call before each collective: ranks that stay away, or come to another one, are named within seconds.

torch.distributed waits for a missing rank until its own time-out, and sums whatever meets. Here every rank first says
in a store what it is about to call, from which line; who is not there by the deadline is told with the last collective
that it came to. Two collectives of the same kind that change places are told by their labels. The calls cost a few
messages to the store, so this is for finding out that a layout is right, not for serving.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator, grid_lines

# Frames of what carries a collective, none of which is where it was called.
_CARRIERS = ("harness/relay.py", "harness/roll_call.py", "reference/communicator.py", "reference/exchange.py")


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def wait(self, keys: list[str], timeout: timedelta, /) -> None: ...
    def delete_key(self, key: str, /) -> bool: ...


class Hang(RuntimeError):
    """A collective that not all of its ranks came to."""


class Called(NamedTuple):
    """What a rank is about to call: its place in the group's sequence, the collective, and the line that calls it."""

    number: int
    what: str
    site: str

    def __str__(self) -> str:
        return f"{self.what} (number {self.number}, called at {self.site})"


class RollCall(Relay):
    """Calls the roll in ``store`` before each collective of ``inner``."""

    def __init__(
        self, inner: Communicator, store: Store, *, deadline_s: float = 10.0, members: tuple[int, ...] | None = None,
        name: str = "all", numbers: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inner)
        self._store = store
        self._deadline = timedelta(seconds=deadline_s)
        self._members = members or tuple(range(inner.size))
        self._me = self._members[inner.rank]
        # A line of the grid may have the members of the whole, and counts its collectives apart.
        self._name = f"{name} {','.join(map(str, self._members))}"
        # A line that is laid out again goes on counting where it was.
        self._numbers = Counter[str]() if numbers is None else numbers

    def call(self, kind: str, payload: Any, label: str) -> Any:
        """Call the collective once all members are there for it. Raises Hang that names those who are not."""
        if self.size == 1:
            return super().call(kind, payload, label)
        mine = Called(self._numbers[self._name], f"{kind} of {label}" if label else kind, _call_site())
        self._numbers[self._name] += 1
        text = json.dumps(mine)
        self._store.set(self._key(mine.number, self._me), text)
        self._store.set(f"last/{self._me}", text)
        keys = [self._key(mine.number, member) for member in self._members]
        try:
            self._store.wait(keys, self._deadline)
        except RuntimeError as error:
            there = dict(zip(self._members, (self._store.check([key]) for key in keys), strict=True))
            raise Hang(self._report(mine, [rank for rank, is_there in there.items() if not is_there])) from error
        found = [Called(*json.loads(self._store.get(key))) for key in keys]
        others = {rank: theirs for rank, theirs in zip(self._members, found, strict=True) if theirs.what != mine.what}
        if others:
            told = "; ".join(f"rank {rank} came to {theirs}" for rank, theirs in others.items())
            raise Hang(f"HANG: rank {self._me} came to {mine}; {told}")
        # All have passed the roll before this one, so nobody will read what was said there.
        self._store.delete_key(self._key(mine.number - 1, self._me))
        return super().call(kind, payload, label)

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        """Call the roll of each line of the grid."""
        found: list[Communicator] = []
        lines = zip(self.inner.grid(shape), grid_lines(shape, self.rank, self.size), strict=True)
        for dimension, (line, places) in enumerate(lines):
            members, seconds = tuple(self._members[place] for place in places), self._deadline.total_seconds()
            name = f"line {dimension} of {tuple(shape)}"
            found.append(
                RollCall(line, self._store, deadline_s=seconds, members=members, name=name, numbers=self._numbers)
            )
        return found

    def _key(self, number: int, rank: int) -> str:
        return f"roll/{self._name}/{number}/{rank}"

    def _report(self, mine: Called, missing: list[int]) -> str:
        told = "; ".join(f"rank {rank} {last_call(self._store, rank)}" for rank in missing)
        waited = f"{self._deadline.total_seconds():g} s"
        return f"HANG: rank {self._me} waited {waited} in {mine} for rank {', '.join(map(str, missing))}: {told}"


def last_call(store: Store, rank: int) -> str:
    """Say what a rank called last."""
    if not store.check([f"last/{rank}"]):
        return "has come to no collective"
    return f"came last to {Called(*json.loads(store.get(f'last/{rank}')))}"


def _call_site() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_CARRIERS):
        frame = frame.f_back
    file = "/".join(frame.f_code.co_filename.split("/")[-2:])
    return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
