"""Level N3a: the IR that Huawei's compiler lowers a kernel to, run on this CPU.

What runs is IR before its buffers are planned: programs one after the other, each in the order of its own instructions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import product

from minimax_m2.harness.npu.launches import Launch
from minimax_m2.harness.npu.native_call import arguments, library
from minimax_m2.harness.npu.toolchain import Compiler, Request


def running(by: Compiler, launches: list[str]) -> Callable[[Launch], None]:
    """What takes a launch over and runs it, noting its name."""

    @cache
    def loaded(request: Request) -> ctypes._NamedFuncPointer:
        return getattr(ctypes.CDLL(str(library(by.ask(request)))), request.kernel)

    def run(launch: Launch) -> None:
        launches.append(launch.name)
        call = loaded(launch.request("execute"))
        types, words = arguments(launch)
        # Behind them the grid, and a place in it.
        call.argtypes, call.restype = [*types, *[ctypes.c_int32] * 6], None
        sizes = (*launch.grid, 1, 1)[:3]
        for z, y, x in product(*(range(size) for size in reversed(sizes))):
            call(*words, *sizes, x, y, z)

    return run
