"""A kernel compiled for this CPU, called as MLIR calls: five words a buffer."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from torch import Tensor

from minimax_m2.harness.npu.launches import Launch
from minimax_m2.harness.npu.toolchain import Answer, linker

SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
# A buffer is handed over as five words: allocated, aligned, offset, size, stride.
BUFFER = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class CompilerRefused(RuntimeError):
    """A kernel has no executable: the text is the compiler's."""


def library(answer: Answer, *others: Path) -> Path:
    """Link an answer's object, with other libraries that it calls.

    Raises CompilerRefused with the compiler's words where there is no object, or where it calls what no library has.
    """
    if answer.error:
        raise CompilerRefused(answer.error)
    shared = answer.folder / "kernel.so"
    if not shared.exists():
        built(shared, str(answer.folder / answer.found["object"]), *map(str, others), "-lm")
    return shared


def built(shared: Path, *sources: str) -> None:
    """Make a shared library; another process that makes the same one does no harm."""
    draft = shared.with_suffix(f".{os.getpid()}")
    command = [linker() or "c++", "-shared", "-fPIC", "-Wl,-z,defs", "-o", str(draft), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unknown = sorted(set(re.findall(r"undefined reference to `_mlir_ciface_(\w+)'", done.stderr)))
        raise CompilerRefused(f"no instruction here for {', '.join(unknown)}" if unknown else done.stderr[-4000:])
    draft.replace(shared)


def arguments(launch: Launch) -> tuple[list[Any], list[Any]]:
    """C types and words of a launch: two buffers that no kernel of ours uses, and its own arguments."""
    types: list[Any] = []
    words: list[Any] = []
    for (_, kind), value in zip((("", "*"), ("", "*"), *launch.signature), (None, None, *launch.values), strict=True):
        if kind.startswith("*"):
            types += BUFFER
            words += buffer(value)
        else:
            types.append(SCALARS[kind])
            words.append(value)
    return types, words


def buffer(x: Tensor | None) -> tuple[int | None, int | None, int, int, int]:
    """The words of a buffer."""
    address = None if x is None else x.data_ptr()
    return address, address, 0, 0 if x is None else x.numel(), 1
