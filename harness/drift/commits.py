"""Which commit: a binary search that knows commits nobody can test, and never blames the one behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What a test said of a commit."""

    GOOD = "good"
    BAD = "bad"
    UNTESTABLE = "cannot be tested"


class Abort(RuntimeError):
    """The test itself is broken, or the budget is spent: nothing may be concluded; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """What the search left.

    commits  the first bad commit, or where some before it cannot be tested, all that may be
    tested   commits and outcomes, in the order of the tests
    """

    commits: tuple[str, ...]
    tested: tuple[tuple[str, Outcome], ...]

    @property
    def is_one(self) -> bool:
        return len(self.commits) == 1


Test = Callable[[str], Outcome]


def search(commits: Sequence[str], test: Test, *, ends_differ: bool = False) -> Culprit:
    """Find where ``commits`` turn from good, the first, to bad, the last.

    ends_differ  whether that has been shown already; else both ends are tested first
    Raises ValueError for fewer than two commits or ends that do not differ; Abort as the test does.
    """
    if len(commits) < 2:
        raise ValueError(f"{len(commits)} commits from good to bad; good must be an ancestor of bad")
    known: dict[int, Outcome] = {}
    tested: list[tuple[str, Outcome]] = []

    def outcome(index: int) -> Outcome:
        if index not in known:
            known[index] = test(commits[index])
            tested.append((commits[index], known[index]))
        return known[index]

    low, high = 0, len(commits) - 1
    if not ends_differ:
        for index, wanted in ((low, Outcome.GOOD), (high, Outcome.BAD)):
            if (found := outcome(index)) is not wanted:
                name = "good" if index == low else "bad"
                raise ValueError(f"the {name} end {commits[index][:12]} is {found.value}: there is nothing to search")
    while (middle := _middle(low, high, known)) is not None:
        match outcome(middle):
            case Outcome.GOOD:
                low = middle
            case Outcome.BAD:
                high = middle
            case Outcome.UNTESTABLE:
                continue
    return Culprit(commits=tuple(commits[low + 1 : high + 1]), tested=tuple(tested))


def _middle(low: int, high: int, known: dict[int, Outcome]) -> int | None:
    """The commit nearest to the middle that may still be tested; None where none is left."""
    open_ = [i for i in range(low + 1, high) if i not in known]
    return min(open_, key=lambda i: abs(2 * i - low - high), default=None)
