"""What the ranks of a tensor-parallel model say to each other: one protocol, three ways to carry it.

``Single`` is a rank alone, ``Threads`` simulates ranks in one process, ``Distributed`` is ``torch.distributed``.
Every collective returns a new tensor (``Single`` may return its argument) and must be called by all ranks in the
same order, with T = 0 too: a rank that skips an empty batch leaves the others waiting. Its ``label`` says what travels,
``o_proj of layer 3``, for whoever must name a rank that stays away.
"""

from __future__ import annotations

import functools
import math
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

    def all_reduce(self, x: Tensor, *, label: str = "") -> Tensor:
        """Sum ``x`` over the ranks, in its dtype; same shape everywhere."""
        ...

    def all_gather(self, x: Tensor, *, label: str = "") -> Tensor:
        """Concatenate every rank's ``x`` along the first dimension, in rank order; same shape everywhere."""
        ...

    def reduce_scatter(self, x: Tensor, *, label: str = "") -> Tensor:
        """Sum ``x [size * n, ...]`` over the ranks and return this rank's ``n`` rows."""
        ...

    def all_to_all(self, parts: Sequence[Tensor], *, label: str = "") -> list[Tensor]:
        """Send ``parts[r]`` to rank r and return what each rank sent here; first dimensions may differ."""
        ...

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        """Lay the ranks out as a grid, the last dimension fastest; return this rank's line along each dimension.

        All ranks call it, in the same order. Raises ValueError if the grid has not as many places as ranks.
        """
        ...


class Single:
    """A rank alone: every collective is the identity."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor, *, label: str = "") -> Tensor:
        """Return ``x``."""
        return x

    def all_gather(self, x: Tensor, *, label: str = "") -> Tensor:
        """Return ``x``."""
        return x

    def reduce_scatter(self, x: Tensor, *, label: str = "") -> Tensor:
        """Return ``x``."""
        return x

    def all_to_all(self, parts: Sequence[Tensor], *, label: str = "") -> list[Tensor]:
        """Return ``parts``, of which there is one."""
        return _one_each(parts, 1)

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        """Return itself for each dimension; all are of one rank."""
        grid_lines(shape, 0, self.size)
        return [self for _ in shape]


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
        # Groups of a grid meet apart: calls are numbered by group, and a group is told by its members.
        self._calls = Counter[tuple[tuple[int, ...], int]]()
        self._meetings: dict[tuple[tuple[int, ...], int], dict[int, tuple[str, Any]]] = {}
        self._failed: list[int] = []

    def run(self, rank_main: Callable[[Communicator], Result]) -> list[Result]:
        """Run ``rank_main(communicator)`` once a rank and return the results in rank order.

        Raises what the first failing rank raised; the others stop waiting for it.
        """
        everyone = tuple(range(self.size))
        with ThreadPoolExecutor(self.size, thread_name_prefix="rank") as threads:
            futures = [threads.submit(rank_main, _ThreadRank(self, everyone, rank)) for rank in everyone]
            for rank, future in enumerate(futures):
                future.add_done_callback(functools.partial(self._finished, rank))
        first = self._failed[0] if self._failed else 0
        return [future.result() for future in (futures[first], *futures)][1:]

    def _finished(self, rank: int, future: Future[Any]) -> None:
        if future.exception() is not None:
            with self._changed:
                self._failed.append(rank)
                self._changed.notify_all()

    def exchange(self, members: tuple[int, ...], rank: int, kind: str, payload: Any, label: str) -> list[Any]:
        """Wait until every member has called its next collective and return all payloads in the members' order."""
        what = f"{kind} of {label}" if label else kind
        with self._changed:
            number = self._calls[members, rank]
            self._calls[members, rank] += 1
            self.counts[rank][kind] += 1
            meeting = self._meetings.setdefault((members, number), {})
            meeting[rank] = (what, payload)
            self._changed.notify_all()
            arrived = self._changed.wait_for(lambda: len(meeting) == len(members) or bool(self._failed), self.timeout_s)
            missing = sorted(set(members) - set(meeting))
            if missing and self._failed:
                raise RuntimeError(
                    f"rank {rank}: {what} number {number} abandoned, rank {next(iter(self._failed))} failed"
                )
            if not arrived:
                raise TimeoutError(
                    f"rank {rank}: {what} number {number} waited {self.timeout_s} s for rank "
                    f"{', '.join(map(str, missing))}; does it skip the collective, for an empty batch perhaps?"
                )
            self._meetings.pop((members, number - 1), None)
        kinds = [meeting[r][0] for r in members]
        if len(set(kinds)) > 1:
            raise RuntimeError(f"collective number {number} differs between ranks: {', '.join(kinds)}")
        return [meeting[r][1] for r in members]


class _ThreadRank:
    """One simulated rank of ``Threads``, or of a line of its grid; ``members`` are the line's ranks among all."""

    def __init__(self, group: Threads, members: tuple[int, ...], rank: int) -> None:
        self._group = group
        self._members = members
        self.rank = rank
        self.size = len(members)

    def all_reduce(self, x: Tensor, *, label: str = "") -> Tensor:
        return functools.reduce(operator.add, self._same_shape("all_reduce", x, label))

    def all_gather(self, x: Tensor, *, label: str = "") -> Tensor:
        return torch.cat(self._same_shape("all_gather", x, label))

    def reduce_scatter(self, x: Tensor, *, label: str = "") -> Tensor:
        rows = _rows_each(x, self.size)
        summed = functools.reduce(operator.add, self._same_shape("reduce_scatter", x, label))
        return summed[self.rank * rows : (self.rank + 1) * rows].clone()

    def all_to_all(self, parts: Sequence[Tensor], *, label: str = "") -> list[Tensor]:
        copies = [part.clone() for part in _one_each(parts, self.size)]
        return [theirs[self.rank] for theirs in self._exchange("all_to_all", copies, label)]

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        lines = grid_lines(shape, self.rank, self.size)
        return [
            _ThreadRank(self._group, tuple(self._members[place] for place in line), line.index(self.rank))
            for line in lines
        ]

    def _exchange(self, kind: str, payload: Any, label: str) -> list[Any]:
        return self._group.exchange(self._members, self._members[self.rank], kind, payload, label)

    def _same_shape(self, kind: str, x: Tensor, label: str) -> list[Tensor]:
        # A copy: this rank may go on and write to x while a slower one still reads what was sent.
        given = self._exchange(kind, x.clone(), label)
        described = {(tuple(theirs.shape), theirs.dtype) for theirs in given}
        if len(described) > 1:
            each = ", ".join(f"rank {r}: {list(theirs.shape)} {theirs.dtype}" for r, theirs in enumerate(given))
            raise ValueError(f"{kind} of tensors that differ: {each}")
        return given


_DEVICE_OF = {"nccl": "cuda", "hccl": "npu"}


class Distributed:
    """The ranks of a ``torch.distributed`` process group, the default one unless ``group`` is given."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)

    def all_reduce(self, x: Tensor, *, label: str = "") -> Tensor:
        """Sum over the ranks; the order of the sum is the back end's."""
        y = x.contiguous().clone()
        torch.distributed.all_reduce(y, group=self.group)
        return y

    def all_gather(self, x: Tensor, *, label: str = "") -> Tensor:
        """Concatenate along the first dimension."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts)

    def reduce_scatter(self, x: Tensor, *, label: str = "") -> Tensor:
        """Sum and keep this rank's rows; made of all_reduce, which every back end has."""
        rows = _rows_each(x, self.size)
        return self.all_reduce(x)[self.rank * rows : (self.rank + 1) * rows].clone()

    def all_to_all(self, parts: Sequence[Tensor], *, label: str = "") -> list[Tensor]:
        """Exchange row counts, then the rows."""
        counts = torch.tensor([len(part) for part in _one_each(parts, self.size)], device=parts[0].device)
        received = self.all_gather(counts).reshape(self.size, self.size)[:, self.rank].tolist()
        y = parts[0].new_empty((sum(received), *parts[0].shape[1:]))
        torch.distributed.all_to_all_single(y, torch.cat(list(parts)), received, counts.tolist(), group=self.group)
        return list(y.split(received))

    def grid(self, shape: Sequence[int]) -> list[Communicator]:
        """Make a device mesh; its lines are process groups of torch.distributed."""
        grid_lines(shape, self.rank, self.size)
        if self.group is not None:
            raise ValueError("a grid is laid over all ranks; this communicator has a group of its own")
        device = _DEVICE_OF.get(torch.distributed.get_backend(), "cpu")
        names = tuple(f"dimension {place}" for place in range(len(shape)))
        mesh = torch.distributed.device_mesh.init_device_mesh(device, tuple(shape), mesh_dim_names=names)
        return [Distributed(mesh.get_group(name)) for name in names]


def _rows_each(x: Tensor, size: int) -> int:
    if x.shape[0] % size:
        raise ValueError(f"reduce_scatter of {x.shape[0]} rows over {size} ranks; pad the rows to a multiple")
    return x.shape[0] // size


def _one_each(parts: Sequence[Tensor], size: int) -> list[Tensor]:
    if len(parts) != size:
        raise ValueError(f"all_to_all of {len(parts)} parts over {size} ranks; give one part a rank")
    return list(parts)


def grid_lines(shape: Sequence[int], rank: int, size: int) -> list[list[int]]:
    """Return, for each dimension of the grid, the ranks that share all other coordinates with ``rank``."""
    places = torch.arange(math.prod(shape)).reshape(tuple(shape))
    if places.numel() != size:
        raise ValueError(f"shape={tuple(shape)} has {places.numel()} places for {size} ranks; their numbers must agree")
    at = [int(index) for index in (places == rank).nonzero()[0]]
    found = []
    for dimension in range(len(shape)):
        line = places.movedim(dimension, -1)[tuple(at[:dimension] + at[dimension + 1 :])]
        found.append([int(place) for place in line])
    return found
