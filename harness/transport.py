"""What passes between two processes: tensors in memory that both map, everything else as lines of JSON.

Nothing that a process sends is executed by the other: a provider in a process of its own can be wrong, not harmful.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
LARGEST_MESSAGE = 1 << 24
# Memory beyond this is given back between calls.
HELD = 1 << 28


class Handle:
    """A value that stays in the other process; ``life`` tells one process from its successor."""

    def __init__(self, number: int, life: int) -> None:
        self.number, self.life = number, life


class Arena:
    """Memory of two processes. Tensors lie in it storage by storage, so strides, gaps and aliases survive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._placed: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def clear(self) -> None:
        """Forget what was placed; its memory is used again."""
        if self._map is not None and self._used > HELD:
            self._map.madvise(mmap.MADV_REMOVE)
        self._used, self._placed = 0, {}

    def place(self, value: Tensor, *, behind: int = 0) -> dict[str, Any]:
        """Copy a tensor's whole storage in, not before the byte ``behind``, and describe where it lies."""
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._placed:
            start = -(-max(self._used, behind) // ALIGNMENT) * ALIGNMENT
            self._reach(start + storage.nbytes())
            self._bytes[start : start + storage.nbytes()] = raw(storage)
            self._used = start + storage.nbytes()
            self._placed[storage.data_ptr()] = (start, storage)
        return {
            "start": self._placed[storage.data_ptr()][0],
            "size": storage.nbytes(),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "offset": value.storage_offset(),
        }

    def at(self, place: dict[str, Any]) -> Tensor:
        """The tensor described by a place, over the shared memory itself."""
        start, size = place["start"], place["size"]
        self._reach(start + size)
        dtype = getattr(torch, place["dtype"])
        whole = self._bytes[start : start + size].view(dtype)
        return torch.as_strided(whole, place["shape"], place["stride"], whole.storage_offset() + place["offset"])

    def restore(self) -> None:
        """Copy every placed storage back to where it came from: what the other process wrote becomes visible."""
        for start, storage in self._placed.values():
            raw(storage).copy_(self._bytes[start : start + storage.nbytes()])

    @property
    def used(self) -> int:
        return self._used

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


def raw(storage: torch.UntypedStorage) -> Tensor:
    """The bytes of a storage."""
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def encoded(value: Any, arena: Arena, *, behind: int = 0) -> Any:
    """A value as JSON; TypeError for what cannot cross."""
    if isinstance(value, Tensor):
        return {"tensor": arena.place(value.detach().cpu(), behind=behind)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Handle):
        return {"handle": value.number}
    if isinstance(value, tuple | list):
        return {"tuple": [encoded(v, arena, behind=behind) for v in value]}
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
