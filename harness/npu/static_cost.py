"""What a launch costs by its planned program: bytes, vector instructions, synchronisation, and a least time by bytes.

Counted in the program that Huawei's compiler planned, each program of the grid run through its loops with the launch's
own sizes. Nothing here was timed: the time is an *estimate*, the bytes over the bandwidth that is stated of a card.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import build, call
from minimax_m2.harness.npu.launches import Launch, launches_of
from minimax_m2.harness.npu.our_kernels import provider
from minimax_m2.harness.npu.planned import plan_of, program_of
from minimax_m2.harness.npu.planned_scalars import Event, Memory, events
from minimax_m2.harness.npu.toolchain import CARDS, Compiler, compiler
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import function_of

# Bytes a second. Huawei states 3.2 TB/s of an Ascend 910C, a package of two of these dies ("Serving Large Language
# Models on Huawei CloudMatrix384", arXiv 2506.12708); of the 910B3 no statement of Huawei's is at hand.
BANDWIDTH = {"Ascend910_9391": 1.6e12}
# Batches of the table that the page shows.
TOKENS = (1, 8, 16, 64, 128, 256, 512, 1024)
# Channels of a row that our rms_norm takes at most.
WIDEST = 4096
# What a vector instruction takes at once.
VECTOR_BYTES = 256
READ, WRITTEN = "load_gm_to_ubuf", "store_ubuf_to_gm"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticCost:
    """All programs of a launch, or of several.

    read, written        bytes between memory and the unified buffers
    vector_instructions  of 256 bytes each, that calls into the vector library need at least
    barriers             where a pipe waits for itself, and flags that one waits for of another
    buffer_bytes         the largest of a vector core's buffer
    """

    read: int = 0
    written: int = 0
    vector_instructions: int = 0
    barriers: int = 0
    waits: int = 0
    buffer_bytes: int = 0

    def __add__(self, other: StaticCost) -> StaticCost:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return StaticCost(**{**summed, "buffer_bytes": max(self.buffer_bytes, other.buffer_bytes)})

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def least_us(self, card: str) -> float | None:
        """An estimate: what the bytes take at the bandwidth stated of a card, None where none is."""
        return self.bytes / BANDWIDTH[card] * 1e6 if card in BANDWIDTH else None


def cost_of(launches: Iterable[Launch], by: Compiler, card: str) -> StaticCost:
    """The cost of launches one after the other. Raises RuntimeError with the compiler's words where it refuses one."""
    return reduce(StaticCost.__add__, (_launch_cost(launch, by, card) for launch in launches), StaticCost())


def _launch_cost(launch: Launch, by: Compiler, card: str) -> StaticCost:
    answer = by.ask(launch.request("plan", card))
    if answer.error:
        raise RuntimeError(f"{launch.name}: {answer.error}")
    plan, program = plan_of(answer), program_of(answer)
    own = [None if isinstance(value, Tensor) else value for value in launch.values]
    # An address of synchronisation and two buffers that no kernel of ours uses; the grid.
    arguments = [None, None, None, *own, *(*launch.grid, 1, 1)[:3]]
    total: Counter[str] = Counter()
    for block in range(prod(launch.grid)):
        for event in events(program, arguments, block):
            name, amount = _amount(event)
            total[name] += amount
    return StaticCost(**total, buffer_bytes=plan.buffer_bytes)


def _amount(event: Event) -> tuple[str, int]:
    """What an event adds to, and how much."""
    name, given = event.name, event.given
    if name.startswith(READ):
        return "read", _smaller(given)
    if name.startswith(WRITTEN):
        return "written", _smaller(given)
    if name.startswith("memref."):
        single = sum(memory.width for memory in given if memory.space == "gm")
        return "read" if name.endswith("load") else "written", single
    if name in ("pipe_barrier", "wait_flag", "set_flag"):
        return "barriers" if name == "pipe_barrier" else "waits", int(name != "set_flag")
    return "vector_instructions", -(-max(memory.bytes for memory in given) // VECTOR_BYTES)


def _smaller(given: tuple[Memory, ...]) -> int:
    """What a copy moves: the piece in memory and the piece in the buffer are equally large."""
    sizes = {memory.bytes for memory in given}
    if len(sizes) != 1:
        raise ValueError(f"a copy between pieces of {sorted(sizes)} bytes is not one that is known here")
    return sizes.pop()


def unfused_cost(case: Case, by: Compiler, card: str) -> StaticCost:
    """The cost of what ``qk_norm_rope`` is made of where nothing is fused: a norm of q, one of k, rope, a copy of v.

    A norm of more channels than a program holds is counted as one of each of its parts, which moves the same.
    """
    launches, copied = unfused(case)
    return cost_of(launches, by, card) + StaticCost(read=copied, written=copied)


def unfused(case: Case) -> tuple[list[Launch], int]:
    """The launches of the parts of ``qk_norm_rope``, and the bytes of v, which are copied."""
    T, Hq, Hk, D, R = (case.number(name) for name in ("T", "Hq", "Hk", "D", "R"))
    dtype = getattr(torch, case.word("dtype"))
    found = [*_norm(T, Hq * D, dtype), *_norm(T, Hk * D, dtype)]
    q, k = (torch.empty(T, heads, D, dtype=dtype) for heads in (Hq, Hk))
    table = torch.empty(T, R, dtype=getattr(torch, case.word("table")))
    rope = _ours("rope")
    found += launches_of(lambda: rope(q, k, table, torch.arange(T), rotary_dim=R))
    return found, k.numel() * k.element_size()


def _norm(rows: int, width: int, dtype: torch.dtype) -> list[Launch]:
    parts, norm = -(-width // WIDEST), _ours("rms_norm")
    x, weight = torch.empty(rows, width // parts, dtype=dtype), torch.empty(width // parts, dtype=dtype)
    return launches_of(lambda: norm(x, weight, eps=1e-6)) * parts


def shares(tokens: int, by: Compiler, card: str) -> tuple[float, float]:
    """The share of the unfused chain's bytes that ``qk_norm_rope`` moves: as launched, and with weights read once.

    What a kernel reads once is what one program of it reads that walks all rows.
    """
    case = find_op("qk_norm_rope").shape("prefill").but(T=tokens, weights="model", stats="none")
    (parts, copied), own = unfused(case), build(find_op("qk_norm_rope"), case, provider())
    fused = launches_of(lambda: call(find_op("qk_norm_rope"), _ours("qk_norm_rope"), own))

    def bytes_of(launches: list[Launch]) -> int:
        return cost_of(launches, by, card).bytes

    def once(launches: list[Launch]) -> list[Launch]:
        return [replace(launch, grid=(1,)) for launch in launches]

    return (
        bytes_of(fused) / (bytes_of(parts) + 2 * copied),
        bytes_of(once(fused)) / (bytes_of(once(parts)) + 2 * copied),
    )


def main() -> None:
    with compiler() as by:
        sys.stdout.write("| tokens | share of the bytes | were weights read once |\n|---|---|---|\n")
        for tokens in TOKENS:
            moved, once = shares(tokens, by, CARDS[1])
            sys.stdout.write(f"| {tokens} | {moved:.1%} | {once:.1%} |\n")


def _ours(name: str) -> Callable[..., Any]:
    function = function_of("npu", name)
    assert function is not None, f"{name} has an NPU kernel"
    return function


if __name__ == "__main__":
    main()
