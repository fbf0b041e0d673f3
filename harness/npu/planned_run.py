"""Level N3b: the device program itself, run on this CPU: every buffer where Huawei's compiler planned it.

What runs is the last program of the open compiler, loops, places and calls as it hands them to its closed part, on one
unified buffer of 192 KiB that holds poison when a program begins. A launch runs twice, on other poison: what it leaves
must be the same bits, so nothing in it hangs on a place of the buffer that nobody wrote.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.harness.npu.device_program import for_this_cpu
from minimax_m2.harness.npu.launches import Launch
from minimax_m2.harness.npu.native_call import BUFFER, CompilerRefused, arguments, buffer, built, library
from minimax_m2.harness.npu.planned import BUFFER_BYTES, program_of
from minimax_m2.harness.npu.toolchain import Compiler, Request, cache_dir
from minimax_m2.harness.watched import raw

VECTOR_LIBRARY = Path(__file__).with_name("vector_library.cpp")
# Each product and sum is rounded, and integers wrap, as on the device.
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fwrapv", "-fno-math-errno")
# Every bit of one is another in the other; to every type of float the first is NaN.
POISONS = (0xFF, 0x00)


class HangsOnPoison(RuntimeError):
    """A program leaves what its unified buffer held before it began."""


def running(
    by: Compiler, launches: list[str], change: Callable[[str], str] = lambda program: program
) -> Callable[[Launch], None]:
    """What takes a launch over and runs its planned program, noting its name; ``change`` plants a fault in it."""

    @cache
    def loaded(request: Request) -> ctypes._NamedFuncPointer:
        answer = by.ask(request)
        if answer.error:
            raise CompilerRefused(answer.error)
        assembled = by.assemble(for_this_cpu(change(program_of(answer))), request.kernel)
        return getattr(ctypes.CDLL(str(library(assembled, vector_library()))), request.kernel)

    unified = torch.empty(BUFFER_BYTES, dtype=torch.uint8)

    def run(launch: Launch) -> None:
        launches.append(launch.name)
        call = loaded(launch.request("plan"))
        types, words = arguments(launch)
        # Before them an address to synchronise by; behind them the grid, the buffer, and which program it is.
        call.argtypes = [ctypes.c_int64, *types, *[ctypes.c_int32] * 3, *BUFFER, ctypes.c_int64]
        call.restype = None
        given = (0, *words, *(*launch.grid, 1, 1)[:3], *buffer(unified))

        def left_on(poison: int) -> list[Tensor]:
            for block in range(prod(launch.grid)):
                unified.fill_(poison)
                call(*given, block)
            return [x.clone() for x in tensors]

        tensors = [value for value in launch.values if isinstance(value, Tensor)]
        before = [x.clone() for x in tensors]
        first = left_on(POISONS[0])
        for x, was in zip(tensors, before, strict=True):
            x.copy_(was)
        _demand_same(launch, first, left_on(POISONS[1]))

    return run


def _demand_same(launch: Launch, first: list[Tensor], second: list[Tensor]) -> None:
    names = [
        name for (name, _), value in zip(launch.signature, launch.values, strict=True) if isinstance(value, Tensor)
    ]
    hanging = [name for name, a, b in zip(names, first, second, strict=True) if not torch.equal(raw(a), raw(b))]
    if hanging:
        raise HangsOnPoison(f"{launch.name}: {', '.join(hanging)} hangs on what the unified buffer held before")


@cache
def vector_library() -> Path:
    """The library of vector instructions, compiled on first use."""
    key = hashlib.sha256(repr((VECTOR_LIBRARY.read_text(), FLAGS)).encode()).hexdigest()[:24]
    shared = cache_dir() / f"vector_library-{key}.so"
    if not shared.exists():
        shared.parent.mkdir(parents=True, exist_ok=True)
        built(shared, *FLAGS, str(VECTOR_LIBRARY))
    return shared
