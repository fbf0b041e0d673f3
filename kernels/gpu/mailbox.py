"""Sums over the GPUs of a host inside a kernel: every rank writes its row into the others' boxes and reads its own.

A box is memory that all GPUs of the host see, ``[2, ranks, rows, words]`` of 64 bits. A word carries 32 bits of a row
and, beside them, a flag: what is summed, and which turn of the row it is.

    word = place << 40 | (turn & 255) << 32 | payload

- A word is stored and loaded whole, so its flag needs no fence, and any 32 bits may be sent: NaN, -0 and all else.
- ``turns`` counts in a rank's own memory how often a row was summed, so a captured launch can be replayed.
- Turn e lies in half ``e & 1``. Nobody sends turn e + 2 before having turn e + 1 of all, which they sent after reading
  turn e: nothing is overwritten that is still to be read. All rows of a box are of one width, so what lies where turn e
  is awaited is turn e - 2, whatever number of bits a turn is counted in.
- A rank that sums something else, another place, is never taken for one that sums this.
- A launch without rows sends, awaits and counts nothing: all ranks bring equally many rows.
- A wait ends after ``patience`` clock cycles. Its row is then NaN, ``missing`` says for whom it was, and every later
  wait ends at once.

``suites/kernels/test_mailbox.py`` proves the protocol over all orders in which words can arrive.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_RANKS = 8
# Programs of a launch wait for each other's peers, so all must run at once; every GPU holds so many.
MOST_ROWS = 64
# A place has 24 bits.
PLACES = 1 << 24
# About what multiprocessors run at; one that is throttled waits longer.
CYCLES_PER_S = 2e9


class CMailbox(ctypes.Structure):
    """The mailbox as ``mailbox.cuh`` declares it."""

    _fields_ = [
        ("boxes", ctypes.c_int64 * MOST_RANKS), ("turns", ctypes.c_void_p), ("missing", ctypes.c_void_p),
        ("patience", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("rank", "ranks", "rows", "words", "place")),
    ]  # fmt: skip


class Missing(NamedTuple):
    """A wait that was given up: for which rank, in the sum of which place, and where that rank came instead, if so."""

    rank: int
    place: int
    elsewhere: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """A rank's box and what it knows of the others'.

    words      of a row, all rows alike
    memory     what keeps the box alive
    addresses  of each rank's box, as this rank sees it
    boxes      the same, ``[ranks]`` int64, on the device
    turns      ``[rows]`` int32, missing ``[1]`` int64, zero at first
    """

    memory: Tensor
    addresses: tuple[int, ...]
    boxes: Tensor
    turns: Tensor
    missing: Tensor
    rank: int
    words: int
    patience: int

    @property
    def ranks(self) -> int:
        """How many ranks share a sum."""
        return len(self.addresses)

    @property
    def rows(self) -> int:
        """How many rows a launch may have."""
        return self.turns.shape[0]

    def at(self, place: int) -> CMailbox:
        """The argument of a CUDA C++ launch that sums ``place``."""
        boxes = (ctypes.c_int64 * MOST_RANKS)(*self.addresses)
        return CMailbox(
            boxes=boxes, turns=self.turns.data_ptr(), missing=self.missing.data_ptr(), patience=self.patience,
            rank=self.rank, ranks=self.ranks, rows=self.rows, words=self.words, place=place,
        )  # fmt: skip

    def given_up(self) -> Missing | None:
        """The first wait that was given up, or None; waits for the device."""
        said = int(self.missing.item())
        if not said:
            return None
        found = said & 0xFFFFFFFF
        return Missing((said >> 56 & 15) - 1, said >> 32 & (PLACES - 1), found >> 8 if said >> 60 & 1 else None)


def box_bytes(ranks: int, rows: int, words: int) -> int:
    """What a box takes: two halves, a row of each rank's in each."""
    return 8 * 2 * ranks * rows * words


def mailbox(
    memory: Tensor, addresses: tuple[int, ...], *, rank: int, rows: int, words: int, patience_s: float
) -> Mailbox:
    """A rank's mailbox over zeroed boxes of ``box_bytes`` each, which lie at ``addresses``.

    Raises ValueError for more ranks or rows than a launch takes.
    """
    ranks, device = len(addresses), memory.device
    if not 0 <= rank < ranks <= MOST_RANKS:
        raise ValueError(f"rank {rank} of {ranks}; a box has places for up to {MOST_RANKS} ranks")
    if not 0 < rows <= MOST_ROWS:
        raise ValueError(f"rows={rows} is outside 1..{MOST_ROWS}; programs that wait for others must all run at once")
    return Mailbox(
        memory=memory, addresses=addresses, boxes=torch.tensor(addresses, dtype=torch.int64, device=device),
        turns=torch.zeros(rows, dtype=torch.int32, device=device),
        missing=torch.zeros(1, dtype=torch.int64, device=device), rank=rank, words=words,
        patience=int(patience_s * CYCLES_PER_S),
    )  # fmt: skip


def together(ranks: int, *, rows: int, words: int, device: torch.device, patience_s: float) -> list[Mailbox]:
    """Mailboxes of ranks that share one GPU, each with a stream of its own: what a single GPU can show of them."""
    boxes = [torch.zeros(box_bytes(ranks, rows, words) // 8, dtype=torch.int64, device=device) for _ in range(ranks)]
    addresses = tuple(box.data_ptr() for box in boxes)
    return [
        mailbox(box, addresses, rank=rank, rows=rows, words=words, patience_s=patience_s)
        for rank, box in enumerate(boxes)
    ]


def arguments(mailbox: Mailbox | None, place: int) -> dict[str, Any]:
    """What a Triton kernel takes beside its own arguments, whether it sums over ranks or not."""
    if mailbox is None:
        nothing = dict.fromkeys(("boxes_ptr", "turns_ptr", "missing_ptr"))
        return {**nothing, "patience": 0, "place": 0, "RANK": 0, "RANKS": 1, "ROWS": 0, "WORDS": 0}
    return {
        "boxes_ptr": mailbox.boxes, "turns_ptr": mailbox.turns, "missing_ptr": mailbox.missing,
        "patience": mailbox.patience, "place": place, "RANK": mailbox.rank, "RANKS": mailbox.ranks,
        "ROWS": mailbox.rows, "WORDS": mailbox.words,
    }  # fmt: skip


@triton.jit
def clock():
    """Cycles of this multiprocessor."""
    return tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def send(at, payload, flag):
    """Store a word whole, by one thread; ``at`` is an address, payload and flag are int32."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .u32 thread;
        .reg .b64 word;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        mov.b64 word, {$2, $3};
        @first st.relaxed.sys.global.b64 [$1], word;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,r", [at, payload, flag], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def give_up(missing_ptr, has_come, said):
    """Note whom a wait was given up for, unless one was before. Threads may disagree: there is no barrier in it."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred late;
        .reg .b64 before;
        setp.eq.s32 late, $2, 0;
        @late atom.relaxed.sys.global.cas.b64 before, [$1], 0, $3;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,l", [missing_ptr.to(tl.int64), has_come, said], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def take(at, flag, place, sender, missing_ptr, start, patience):
    """Wait for a word: its 32 bits, and whether they have come."""
    box = at.to(tl.pointer_type(tl.int64))
    word = tl.load(box, volatile=True)
    while ((word >> 32).to(tl.int32) != flag) & (clock() - start < patience):
        word = tl.load(box, volatile=True)
    found = (word >> 32).to(tl.int32)
    has_come = found == flag
    elsewhere = ((found ^ flag) & 0xFF) == 0
    said = (
        (elsewhere.to(tl.int64) << 60)
        | ((sender + 1).to(tl.int64) << 56)
        | ((place.to(tl.int64) & 0xFFFFFF) << 32)
        | (found.to(tl.int64) & 0xFFFFFFFF)
    )
    give_up(missing_ptr, has_come.to(tl.int32), said)
    return word.to(tl.int32), has_come


@triton.jit
def summed_over_ranks(
    first, second, row, boxes_ptr, turns_ptr, missing_ptr, patience, place, ROWS: tl.constexpr, WORDS: tl.constexpr,
    RANK: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """The sums of two float32 of a program over all ranks, in their order; NaN where one has not come."""
    turn = tl.load(turns_ptr + row) + 1
    flag = (place << 8) | (turn & 0xFF)
    half = (turn & 1).to(tl.int64) * RANKS
    for owner in tl.static_range(RANKS):
        if owner != RANK:
            there = tl.load(boxes_ptr + owner) + ((half + RANK) * ROWS + row) * (8 * WORDS)
            send(there, first.to(tl.int32, bitcast=True), flag)
            send(there + 8, second.to(tl.int32, bitcast=True), flag)
    patience = tl.where(tl.load(missing_ptr, volatile=True) == 0, patience, 0)
    own = tl.load(boxes_ptr + RANK)
    start = clock()
    first_sum, second_sum = first, second
    for sender in tl.static_range(RANKS):
        a, b = first, second
        if sender != RANK:
            here = own + ((half + sender) * ROWS + row) * (8 * WORDS)
            number = tl.full((), sender, tl.int32)
            bits, has_come = take(here, flag, place, number, missing_ptr, start, patience)
            a = tl.where(has_come, bits.to(tl.float32, bitcast=True), float("nan"))
            bits, has_come = take(here + 8, flag, place, number, missing_ptr, start, patience)
            b = tl.where(has_come, bits.to(tl.float32, bitcast=True), float("nan"))
        first_sum = a if sender == 0 else first_sum + a
        second_sum = b if sender == 0 else second_sum + b
    # Every thread has read the turn before it is counted.
    tl.debug_barrier()
    tl.store(turns_ptr + row, turn)
    return first_sum, second_sum
