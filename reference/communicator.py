"""What the ranks of a tensor-parallel model say to each other: one protocol, three ways to carry it.

``Single`` is a rank alone, ``Threads`` simulates ranks in one process, ``Distributed`` is ``torch.distributed``.
Every collective returns a new tensor (``Single`` may return its argument) and must be called by all ranks in the
same order, with T = 0 too: a rank that skips an empty batch leaves the others waiting.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Communicator(Protocol):
    """A rank's view of its group."""

    @property
    def rank(self) -> int:
        """Number of this rank, 0..size-1."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum ``x`` over the ranks, in its dtype; same shape everywhere."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every rank's ``x`` along the first dimension, in rank order; same shape everywhere."""
        ...

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum ``x [size * n, ...]`` over the ranks and return this rank's ``n`` rows."""
        ...

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send ``parts[r]`` to rank r and return what each rank sent here; first dimensions may differ."""
        ...


class Single:
    """A rank alone: every collective is the identity."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return ``parts``, of which there is one."""
        return _one_each(parts, 1)


class Threads:
    """Ranks simulated by threads of this process; ``counts`` says how often each rank called each collective.

    Sums run in rank order in the tensors' own dtype, so every rank gets the same bits, run after run.
    A rank that stays away for ``timeout_s`` seconds is named in a TimeoutError on all that wait for it.
    """

    def __init__(self, size: int, *, timeout_s: float = 30.0) -> None:
        if size < 1:
            raise ValueError(f"size={size} ranks; expected at least 1")
        self.size = size
        self.timeout_s = timeout_s
        self.counts: list[Counter[str]] = [Counter() for _ in range(size)]
        self._changed = threading.Condition()
        self._calls = [0] * size
        self._meetings: dict[int, dict[int, tuple[str, Any]]] = {}
        self._failed: list[int] = []

    def run(self, rank_main: Callable[[Communicator], Result]) -> list[Result]:
        """Run ``rank_main(communicator)`` once a rank and return the results in rank order.

        Raises what the first failing rank raised; the others stop waiting for it.
        """
        with ThreadPoolExecutor(self.size, thread_name_prefix="rank") as threads:
            futures = [threads.submit(rank_main, _ThreadRank(self, rank)) for rank in range(self.size)]
            for rank, future in enumerate(futures):
                future.add_done_callback(functools.partial(self._finished, rank))
        first = self._failed[0] if self._failed else 0
        return [future.result() for future in (futures[first], *futures)][1:]

    def _finished(self, rank: int, future: Future[Any]) -> None:
        if future.exception() is not None:
            with self._changed:
                self._failed.append(rank)
                self._changed.notify_all()

    def exchange(self, rank: int, kind: str, payload: Any) -> list[Any]:
        """Wait until every rank has called its next collective and return all payloads in rank order."""
        with self._changed:
            number = self._calls[rank]
            self._calls[rank] += 1
            self.counts[rank][kind] += 1
            meeting = self._meetings.setdefault(number, {})
            meeting[rank] = (kind, payload)
            self._changed.notify_all()
            arrived = self._changed.wait_for(lambda: len(meeting) == self.size or bool(self._failed), self.timeout_s)
            missing = sorted(set(range(self.size)) - set(meeting))
            if missing and self._failed:
                raise RuntimeError(
                    f"rank {rank}: {kind} number {number} abandoned, rank {next(iter(self._failed))} failed"
                )
            if not arrived:
                raise TimeoutError(
                    f"rank {rank}: {kind} number {number} waited {self.timeout_s} s for rank "
                    f"{', '.join(map(str, missing))}; does it skip the collective, for an empty batch perhaps?"
                )
            self._meetings.pop(number - 1, None)
        kinds = [meeting[r][0] for r in range(self.size)]
        if len(set(kinds)) > 1:
            raise RuntimeError(f"collective number {number} differs between ranks: {', '.join(kinds)}")
        return [meeting[r][1] for r in range(self.size)]


class _ThreadRank:
    """One simulated rank of ``Threads``."""

    def __init__(self, group: Threads, rank: int) -> None:
        self._group = group
        self.rank = rank
        self.size = group.size

    def all_reduce(self, x: Tensor) -> Tensor:
        return functools.reduce(operator.add, self._same_shape("all_reduce", x))

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._same_shape("all_gather", x))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        rows = _rows_each(x, self.size)
        summed = functools.reduce(operator.add, self._same_shape("reduce_scatter", x))
        return summed[self.rank * rows : (self.rank + 1) * rows].clone()

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        copies = [part.clone() for part in _one_each(parts, self.size)]
        return [theirs[self.rank] for theirs in self._group.exchange(self.rank, "all_to_all", copies)]

    def _same_shape(self, kind: str, x: Tensor) -> list[Tensor]:
        # A copy: this rank may go on and write to x while a slower one still reads what was sent.
        given = self._group.exchange(self.rank, kind, x.clone())
        described = {(tuple(theirs.shape), theirs.dtype) for theirs in given}
        if len(described) > 1:
            each = ", ".join(f"rank {r}: {list(theirs.shape)} {theirs.dtype}" for r, theirs in enumerate(given))
            raise ValueError(f"{kind} of tensors that differ: {each}")
        return given


class Distributed:
    """The ranks of a ``torch.distributed`` process group, the default one unless ``group`` is given."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks; the order of the sum is the back end's."""
        y = x.contiguous().clone()
        torch.distributed.all_reduce(y, group=self.group)
        return y

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along the first dimension."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum and keep this rank's rows; made of all_reduce, which every back end has."""
        rows = _rows_each(x, self.size)
        return self.all_reduce(x)[self.rank * rows : (self.rank + 1) * rows].clone()

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Exchange row counts, then the rows."""
        counts = torch.tensor([len(part) for part in _one_each(parts, self.size)], device=parts[0].device)
        received = self.all_gather(counts).reshape(self.size, self.size)[:, self.rank].tolist()
        y = parts[0].new_empty((sum(received), *parts[0].shape[1:]))
        torch.distributed.all_to_all_single(y, torch.cat(list(parts)), received, counts.tolist(), group=self.group)
        return list(y.split(received))


def _rows_each(x: Tensor, size: int) -> int:
    if x.shape[0] % size:
        raise ValueError(f"reduce_scatter of {x.shape[0]} rows over {size} ranks; pad the rows to a multiple")
    return x.shape[0] // size


def _one_each(parts: Sequence[Tensor], size: int) -> list[Tensor]:
    if len(parts) != size:
        raise ValueError(f"all_to_all of {len(parts)} parts over {size} ranks; give one part a rank")
    return list(parts)
