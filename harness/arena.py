"""Guarded memory: what a provider is given lies between red zones, and memory that nobody owns holds poison.

A call is made twice, with other poison: NaN, then large finite numbers, in red zones, in the gaps between rows, in
slots that hold nobody's number, in outputs to be written and in memory that the provider allocates. Who writes outside
its tensors leaves a mark; who reads there, or what nobody wrote, gets other results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.cuda_memory import fill_free_memory
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.verdict import Outcome

RED_ZONE = 4096
# What a device's allocator aligns to: a guarded tensor lies as an allocated one would.
ALIGNMENT = 512
# Bytes of a tensor beyond which it stays where it is: a copy of it would take longer than to judge it.
LARGEST = 1 << 24
M_PERTURB = -6


class Poison(NamedTuple):
    """Two bytes: one for memory around and between what is given, one for memory that a call allocates.

    glibc cannot fill what it allocates with 0xff, so there the poison is the largest number of one sign.
    """

    unowned: int
    allocated: int


# NaN in every floating format; 0x7f7f7f7f as an index, 3.4e38 in bfloat16 and float32.
NAN = Poison(0xFF, 0x7F)
# 1.3e36 in bfloat16 and float32, 61280 in float16, 352 in e4m3; below zero where allocated.
LARGE = Poison(0x7B, 0xFB)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies: ``size`` bytes of the block from its first element to the end of its last."""

    name: str
    start: int
    size: int
    view: Tensor
    writable: bool


class Guard:
    """Arguments and outputs of one call between red zones of one block of memory.

    named     tensors by name
    writable  names of those that the call may write
    outputs   shape and dtype of tensors to be written, by name; they hold poison
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        *,
        writable: Sequence[str] = (),
        outputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
        device: str = "cpu",
        poison: Poison = NAN,
    ) -> None:
        places, cursor = list[tuple[int, int]](), RED_ZONE
        for tensor in named.values():
            within = int(tensor.storage_offset()) * tensor.element_size() % ALIGNMENT
            places.append((_aligned(cursor) + within, span(tensor)))
            cursor = sum(places[-1]) + RED_ZONE
        for shape, dtype in (outputs or {}).values():
            places.append((_aligned(cursor), torch.Size(shape).numel() * dtype.itemsize))
            cursor = sum(places[-1]) + RED_ZONE
        self._block = torch.full((cursor,), poison.unowned, dtype=torch.uint8, device=device)
        self.slots: list[Slot] = []
        for (name, tensor), (start, size) in zip(named.items(), places, strict=False):
            whole = self._block[start : start + size].view(tensor.dtype)
            view = whole.as_strided(tensor.shape, tensor.stride(), whole.storage_offset())
            if poison is NAN or 0 in tensor.stride():
                whole.copy_(tensor.as_strided((whole.numel(),), (1,)))
            else:
                # Between the rows stays the poison of the block.
                view.copy_(tensor)
                _spoil(whole, poison)
            self.slots.append(Slot(name, start, size, view, name in writable))
        for (name, (shape, dtype)), (start, size) in zip((outputs or {}).items(), places[len(named) :], strict=True):
            view = self._block[start : start + size].view(dtype).view(shape)
            self.slots.append(Slot(name, start, size, view, True))
        self._before = self._block.clone()

    def __getitem__(self, name: str) -> Tensor:
        return next(slot.view for slot in self.slots if slot.name == name)

    def written(self) -> str:
        """Name of an input that the call wrote to, or nothing.

        Raises Misplaced where it wrote into a red zone or between rows, with owner, offset and value.
        """
        for slot in self.slots:
            if slot.writable:
                # What may change has changed; what is left must be as it was.
                self._same(slot).copy_(slot.view)
        if torch.equal(self._block, self._before):
            return ""
        changed = (self._block != self._before).nonzero().flatten().cpu()
        at = int(changed[0])
        slot = min(self.slots, key=lambda s: max(s.start - at, at - (s.start + s.size - 1)))
        within = at - slot.start
        if 0 <= within < slot.size and bool(covered(slot.view)[within // slot.view.element_size()]):
            return slot.name
        raise Misplaced(Outcome.OUTSIDE, self._told(slot, within, len(changed)))

    def _told(self, slot: Slot, within: int, count: int) -> str:
        width = slot.view.element_size()
        # The element that holds the byte: the others of it may have been what they are now.
        within = within // width * width
        if within < 0:
            place = f"{-within} bytes before its first element"
        elif within < slot.size:
            place = f"between its rows, {within} bytes behind its first"
        else:
            place = f"{within - slot.size} bytes behind the end of its last element"
        first = slot.start + within
        value = self._block[first : first + width].clone().view(slot.view.dtype).item()
        return f"wrote {count} bytes outside of what it was given: {slot.name}, {place}, now {value!r}"

    def _same(self, slot: Slot) -> Tensor:
        """The slot's tensor as it was before the call."""
        whole = self._before[slot.start : slot.start + slot.size].view(slot.view.dtype)
        return whole.as_strided(slot.view.shape, slot.view.stride(), whole.storage_offset())


def span(x: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last, gaps between rows included."""
    if x.numel() == 0:
        return 0
    return (1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def covered(x: Tensor) -> Tensor:
    """Which elements of its span a tensor has, bool: the others are gaps between its rows."""
    found = torch.zeros(span(x) // x.element_size(), dtype=torch.bool)
    found.as_strided(x.shape, x.stride()).fill_(True)
    return found


def _spoil(whole: Tensor, poison: Poison) -> None:
    """Put poison for NaN, which in what is given marks memory that nobody may read."""
    if not whole.is_floating_point():
        return
    nobody = whole.to(torch.float32).isnan()
    if bool(nobody.any()):
        whole.view(torch.uint8).view(whole.numel(), -1)[nobody] = poison.unowned


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@contextmanager
def allocations(byte: int, device: str = "cpu") -> Iterator[None]:
    """Fill what is allocated meanwhile with a byte, where the C library is glibc; 0 fills nothing.

    Blocks of up to 1,032 bytes that glibc keeps by thread come as they were left, those of tensors from 2.38 on. It
    keeps none in a process that began with its tunable ``tcache_count=0``, as a provider's own does (``worker.py``).

    On a gpu what torch holds free is filled before, so that a call's own tensors lie in it.
    """
    global _filled
    before, _filled = _filled, byte
    _perturb(byte)
    try:
        if byte and device == "gpu":
            fill_free_memory(byte)
        yield
    finally:
        _filled = before
        _perturb(before)


def filled() -> int:
    """The byte that allocated memory is filled with now."""
    return _filled


_filled = 0


def _perturb(byte: int) -> None:
    mallopt: Callable[..., Any] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # The parameter is what freed memory is filled with; allocated memory gets its complement.
        mallopt(M_PERTURB, byte ^ 0xFF if byte else 0)


def difference(names: Sequence[str], first: Sequence[Tensor], second: Sequence[Tensor], sure: Sequence[Tensor]) -> str:
    """Say where two results differ, elements that are not ``sure`` aside; nothing where they do not."""
    for name, a, b, known in zip(names, first, second, sure, strict=True):
        differs = (_elements(a) != _elements(b)).any(1).view(a.shape) & known
        if bool(differs.any()):
            index = tuple(int(i) for i in differs.nonzero()[0])
            return f"{name} at {list(index)} is {a[index].item()!r}, then {b[index].item()!r}"
    return ""


def _elements(x: Tensor) -> Tensor:
    """The bytes of each element, ``[elements, width]``."""
    flat = x.contiguous().view(-1)
    return flat.view(torch.uint8).view(len(flat), x.element_size())
