"""What passes between two processes: tensors in memory that both map, everything else as lines of JSON.

Nothing that a process sends is executed by the other: a provider in a process of its own can be wrong, not harmful.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.arena import span
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.verdict import Outcome

PAGE = mmap.PAGESIZE
PROT_NONE = 0
LARGEST_MESSAGE = 1 << 24
# Memory beyond this is given back between calls, and copied in parts.
HELD, PART = 1 << 28, 1 << 20
# What fills a page before a group's first byte; NaN in every floating format.
SLACK = 0xFF
# Words of the arena's first page: where a process maps it, and where that process was when it died.
BASE, FAULT = 0, 1


class Handle:
    """A value that stays in the other process; ``life`` tells one process from its successor."""

    def __init__(self, number: int, life: int) -> None:
        self.number, self.life = number, life


class Group:
    """Tensors that lie over each other or between each other's rows, copied as one run of bytes.

    start   its first byte in the arena; it ends where a page does
    source  the bytes that it was copied from
    owners  whose they are: held, lest another tensor come to lie where one of them did
    """

    def __init__(self, start: int, source: Tensor, owners: list[Tensor]) -> None:
        self.start, self.source, self.owners = start, source, owners
        self.end = start + source.numel()

    @property
    def slack(self) -> tuple[int, int]:
        """The bytes of its first page that are nobody's."""
        return self.start // PAGE * PAGE, self.start


class Arena:
    """Memory of two processes. What lies in it keeps strides, gaps and aliases.

    Each group of tensors ends where a page does, and the page behind it belongs to nobody. The first page of all tells
    where a process was when it died.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._used = PAGE
        self._groups: list[Group] = []
        self._reach(PAGE)

    def clear(self) -> None:
        """Forget what was placed; its memory is used again."""
        if self._map is not None and self._used > HELD:
            self._map.madvise(mmap.MADV_REMOVE, PAGE)
        self._used, self._groups = PAGE, []

    def lay(self, values: Iterable[Tensor], *, behind: int = 0) -> None:
        """Copy tensors in, not before the byte ``behind``: those whose spans meet as one group."""
        values = list(values)
        for first, last, width in joined(values):
            size = -(-(last - first) // width) * width
            end = _whole_pages(max(self._used, behind) + size)
            self._reach(end + PAGE)
            source = bytes_at(first, last - first)
            group = Group(end - size, source, values)
            self._bytes[slice(*group.slack)] = SLACK
            copy_touched(self._bytes[group.start : group.start + len(source)], source)
            self._used = end + PAGE
            self._groups.append(group)

    def place(self, value: Tensor, *, behind: int = 0) -> dict[str, Any]:
        """Describe where a tensor lies, which is copied in unless it was laid."""
        first, size = value.data_ptr(), span(value)
        group = next((g for g in self._groups if _within(first, size, g.source)), None)
        if group is None and size:
            self.lay([value], behind=behind)
            group = self._groups[-1]
        return {
            "start": PAGE if group is None else group.start + first - group.source.data_ptr(),
            "size": size,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "stride": list(value.stride()),
        }

    def at(self, place: dict[str, Any]) -> Tensor:
        """The tensor described by a place, over the shared memory itself."""
        start, size = place["start"], place["size"]
        self._reach(start + size)
        whole = self._bytes[start : start + size].view(getattr(torch, place["dtype"]))
        return torch.as_strided(whole, place["shape"], place["stride"], whole.storage_offset())

    def restore(self, places: Mapping[str, dict[str, Any]]) -> None:
        """Copy every group back to where it came from: what the other process wrote becomes visible.

        Raises Misplaced where it wrote before the first byte of one; ``places`` knows its name.
        """
        for group in self._groups:
            slack = self._bytes[slice(*group.slack)]
            if bool((slack != SLACK).any()):
                at = group.start - group.slack[0] - int((slack != SLACK).nonzero()[-1])
                named = next((name for name, place in places.items() if place["start"] == group.start), "an argument")
                raise Misplaced(Outcome.OUTSIDE, f"wrote {at} bytes before the first byte of {named}")
            copy_touched(group.source, self._bytes[group.start : group.start + len(group.source)])

    @property
    def used(self) -> int:
        return self._used

    @property
    def size(self) -> int:
        """Bytes of this process's mapping."""
        return self._bytes.numel()

    @property
    def pages(self) -> list[int]:
        """The page behind each group."""
        return [_whole_pages(group.end) for group in self._groups]

    @contextmanager
    def protected(self, pages: Sequence[int]) -> Iterator[None]:
        """Kill who touches these pages meanwhile; where he did is told to the other process."""
        self._bytes[:PAGE].view(torch.int64)[BASE] = self._bytes.data_ptr()
        for page in pages:
            protect(self._bytes.data_ptr() + page, PAGE, PROT_NONE)
        try:
            yield
        finally:
            for page in pages:
                protect(self._bytes.data_ptr() + page, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)

    def fault(self) -> int:
        """The address of the word that a process writes when it dies: where it was."""
        return self._bytes.data_ptr() + 8 * FAULT

    def touched(self, places: Mapping[str, dict[str, Any]]) -> str:
        """What the process that died was at, by names of places; nothing where it was at nobody's page."""
        base, fault = (int(self._bytes[:PAGE].view(torch.int64)[at]) for at in (BASE, FAULT))
        beyond = {name: fault - base - place["start"] - place["size"] for name, place in places.items()}
        near = {name: distance for name, distance in beyond.items() if 0 <= distance < 2 * PAGE}
        if not fault or not near:
            return ""
        name = min(near, key=lambda n: near[n])
        return f"it touched the byte {near[name]} behind the end of {name}"

    def _reach(self, size: int) -> None:
        if size <= self._bytes.numel():
            return
        held = os.fstat(self._descriptor).st_size
        if size > held:
            held = max(size, 2 * held, 1 << 20)
            os.ftruncate(self._descriptor, held)
        # Tensors over the old mapping stay valid: both map the same pages.
        self._map = mmap.mmap(self._descriptor, held)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)


def joined(values: Iterable[Tensor]) -> list[tuple[int, int, int]]:
    """First byte, end and widest element of each run of tensors whose spans meet."""
    runs = list[tuple[int, int, int]]()
    spans = ((v.data_ptr(), v.data_ptr() + span(v), v.element_size()) for v in values if v.numel())
    for first, last, width in sorted(spans):
        if runs and first < runs[-1][1]:
            before = runs.pop()
            first, last, width = before[0], max(before[1], last), max(before[2], width)
        runs.append((first, last, width))
    return runs


def bytes_at(address: int, size: int) -> Tensor:
    """Memory of this process as bytes; its owner must live as long."""
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


def copy_touched(destination: Tensor, source: Tensor) -> None:
    """Copy bytes; of a large run only the parts that differ, so that what nobody touched stays untouched."""
    if len(source) <= HELD:
        destination.copy_(source)
        return
    for part, other in zip(destination.split(PART), source.split(PART), strict=True):
        if not torch.equal(part, other):
            part.copy_(other)


def guarded_copy(value: Tensor) -> Tensor:
    """A copy with a page behind its last byte that nobody may touch."""
    size = span(value)
    end = _whole_pages(size)
    memory = mmap.mmap(-1, end + PAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    protect(whole.data_ptr() + end, PAGE, PROT_NONE)
    placed = whole[end - size : end].view(value.dtype)
    placed.copy_(value.as_strided((placed.numel(),), (1,)))
    return placed.as_strided(value.shape, value.stride(), placed.storage_offset())


def protect(address: int, size: int, access: int) -> None:
    """Set the access to whole pages; OSError says why it cannot be set."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access) != 0:
        raise OSError(ctypes.get_errno(), f"mprotect of {size} bytes")


def _within(first: int, size: int, run: Tensor) -> bool:
    return size > 0 and run.data_ptr() <= first and first + size <= run.data_ptr() + len(run)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def encoded(value: Any, arena: Arena, *, behind: int = 0) -> Any:
    """A value as JSON; TypeError for what cannot cross."""
    arena.lay(list(_host_tensors(value)), behind=behind)
    return _encoded(value, arena, behind)


def _host_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.device.type == "cpu":
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _host_tensors(part)


def _encoded(value: Any, arena: Arena, behind: int) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": arena.place(value.detach().cpu(), behind=behind)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Handle):
        return {"handle": value.number}
    if isinstance(value, tuple | list):
        return {"tuple": [_encoded(v, arena, behind) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot pass to another process; tensors, dtypes and numbers can")


def decoded(value: Any, arena: Arena, kept: dict[int, Any]) -> Any:
    """The value again; tensors lie over the shared memory, ``kept`` resolves handles."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return arena.at(held)
    if kind == "dtype":
        return getattr(torch, held)
    if kind == "handle":
        return kept[held]
    return tuple(decoded(v, arena, kept) for v in held)


class Channel:
    """Messages over a socket: four bytes of length, then JSON."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        self._end.sendall(struct.pack("<I", len(text)) + text)

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next message; TimeoutError when it does not come in time, EOFError when the other end is gone."""
        self._end.settimeout(seconds)
        (size,) = struct.unpack("<I", self._exactly(4))
        if size > LARGEST_MESSAGE:
            raise EOFError(f"a message of {size} bytes is none of ours")
        return json.loads(self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._end.recv(count - len(parts))
            if not part:
                raise EOFError("the other process closed its end")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        self._end.close()
