"""Delta debugging: the smallest part of a list that still fails, by Zeller's ddmin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool], *, most: int = 400) -> list[T]:
    """A part of ``items`` that fails and of which no chunk that was tried can be left out; ``most`` tries at most.

    Raises ValueError where the whole does not fail: there is nothing to look for.
    """
    if not fails(items):
        raise ValueError(f"all {len(items)} items together do not fail, so no part of them is to blame")
    kept, parts, tried = list(items), 2, 1
    while len(kept) >= 2 and tried < most:
        chunks = [kept[i * len(kept) // parts : (i + 1) * len(kept) // parts] for i in range(parts)]
        others = [[x for c in chunks[:i] + chunks[i + 1 :] for x in c] for i in range(parts)] if parts > 2 else []
        found = None
        for candidate in (*chunks, *others):
            tried += 1
            if fails(candidate):
                found = candidate
                break
        if found is not None:
            parts = 2 if len(found) <= -(-len(kept) // parts) else max(parts - 1, 2)
            kept = found
        elif parts >= len(kept):
            break
        else:
            parts = min(len(kept), 2 * parts)
    return kept
