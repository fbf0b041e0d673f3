"""Level N3a: the IR that Huawei's compiler makes of our NPU kernels, executed on this CPU, judged as any provider.

``python -m minimax_m2.harness.npu.executed qk_norm_rope --cases 40`` prints one JSON object. What runs is the lowered
IR before its buffers are planned: programs one after the other, each in the order of its own instructions.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from minimax_m2.harness.interpreter import Interpreted, judged_by
from minimax_m2.harness.npu.launches import Launch, taken_over
from minimax_m2.harness.npu.toolchain import Answer, Compiler, compiler, linker
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.providers.ours import Contracts, function_of

LEVEL = "N3a"
SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
# A buffer is handed over as five words: allocated, aligned, offset, size, stride.
BUFFER = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class CompilerRefused(RuntimeError):
    """A kernel has no executable: the text is the compiler's."""


def provider(file: str = "") -> Provider:
    """Our NPU kernels, or somebody's in a file, as a provider of CPU tensors; their launches must be taken over."""
    if file:
        return from_file(file)
    return Provider(
        name="ours", device="cpu", functions=lambda name: function_of("npu", name), contract=Contracts("npu")
    )


def running(by: Compiler, launches: list[str]) -> Callable[[Launch], None]:
    """What takes a launch over and runs it, noting its name."""

    @cache
    def loaded(request: Any) -> Any:
        return getattr(ctypes.CDLL(str(library(by.ask(request)))), request.kernel)

    def run(launch: Launch) -> None:
        launches.append(launch.name)
        call = loaded(launch.request("execute"))
        types, words = arguments(launch)
        call.argtypes, call.restype = types, None
        sizes = (*launch.grid, 1, 1)[:3]
        for z, y, x in product(*(range(size) for size in reversed(sizes))):
            call(*words, *sizes, x, y, z)

    return run


def library(answer: Answer) -> Path:
    """Link an answer's object. Raises CompilerRefused with the compiler's words where there is none."""
    if answer.error:
        raise CompilerRefused(answer.error)
    shared = answer.folder / "kernel.so"
    if not shared.exists():
        link = [linker() or "c++", "-shared", "-o", str(shared), str(answer.folder / answer.found["object"]), "-lm"]
        subprocess.run(link, check=True, capture_output=True)
    return shared


def arguments(launch: Launch) -> tuple[list[Any], list[Any]]:
    """C types and words of a launch: two buffers that no kernel of ours uses, its own arguments, grid and place."""
    types: list[Any] = []
    words: list[Any] = []
    for (_, kind), value in zip((("", "*"), ("", "*"), *launch.signature), (None, None, *launch.values), strict=True):
        if kind.startswith("*"):
            types += BUFFER
            words += _buffer(value)
        else:
            types.append(SCALARS[kind])
            words.append(value)
    return [*types, *[ctypes.c_int32] * 6], words


def _buffer(x: Tensor | None) -> tuple[int | None, int | None, int, int, int]:
    address = None if x is None else x.data_ptr()
    return address, address, 0, 0 if x is None else x.numel(), 1


def judged(name: str, count: int, file: str = "") -> Interpreted:
    """Judge the first ``count`` sampled cases of an op, its shapes at M2's widths first."""
    launches: list[str] = []
    with compiler() as by, taken_over(running(by, launches)):
        return judged_by(provider(file), name, count, launches, level=LEVEL, shapes=True)


def in_own_process(name: str, count: int, file: str = "") -> Interpreted:
    """Judge in a new process, which a kernel that writes outside may take down; RuntimeError with its output then."""
    command = [sys.executable, "-m", __name__, name, "--cases", str(count), "--file", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{LEVEL} {name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Interpreted(**{**found, "failures": tuple(found["failures"])})


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("op")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--file", default="", help="a provider file of Triton kernels; ours without it")
    asked = parser.parse_args(given)
    sys.stdout.write(json.dumps(asdict(judged(asked.op, asked.cases, asked.file))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
