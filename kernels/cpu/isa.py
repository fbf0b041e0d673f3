"""Which instruction set the CPU kernels use: detection, choice, and switching inside one process.

Every op is compiled once per entry of ``VECTOR``, and some dense products once more for ``amx``; a launch reads one
int, the index of the variant in force. ``MINIMAX_M2_CPU_ISA`` forces a lower one from outside, ``forced("avx2")`` from
inside.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What Linux grants a process that asks for tile registers, beside the flags of the processor.
TILE_PERMISSION = "tile_permission"

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AVX512_BF16 = _AVX512 | {"avx512_bf16", "avx512_vnni", "avx512vbmi"}

# Processor flags, as Linux spells them, that a variant's object may use. Ascending: a later one includes the earlier.
REQUIRED: dict[str, frozenset[str]] = {
    "portable": frozenset(),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512_BF16,
    "amx": _AVX512_BF16 | {"amx_tile", "amx_bf16", "amx_int8", TILE_PERMISSION},
}

COMPILED: tuple[str, ...] = tuple(REQUIRED) if platform.machine() in ("x86_64", "AMD64") else ("portable",)

# The variants every op has. Tiles serve dense products only; an op without a tile unit runs its highest vector variant.
VECTOR: tuple[str, ...] = tuple(name for name in COMPILED if name != "amx")

ENVIRONMENT_VARIABLE = "MINIMAX_M2_CPU_ISA"

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def supported(cpu_flags: frozenset[str]) -> tuple[str, ...]:
    """List the compiled variants that a processor with these flags can run, ascending."""
    return tuple(name for name in COMPILED if REQUIRED[name] <= cpu_flags)


def choose(cpu_flags: frozenset[str], forced: str | None) -> str:
    """Pick the variant: the forced one, else the highest that the processor can run.

    Raises ValueError for a forced variant that is unknown, or needs flags that are not granted.
    """
    runnable = supported(cpu_flags)
    if forced is None:
        return runnable[-1]
    if forced in runnable:
        return forced
    if forced in REQUIRED:
        reason = f"needs processor flags {', '.join(sorted(REQUIRED[forced] - cpu_flags)) or 'of x86-64'}"
    else:
        reason = "is unknown"
    raise ValueError(f"{ENVIRONMENT_VARIABLE}={forced!r} {reason}; this machine runs {', '.join(runnable)}")


def cpu_flags() -> frozenset[str]:
    """Read the flags that processor *and* operating system grant; empty where Linux does not list them.

    Tile registers need a permission of their own, which a process asks for: ``TILE_PERMISSION`` says it was given.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    flags = frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
    return flags | {TILE_PERMISSION} if "amx_tile" in flags and tiles_permitted() else flags


def tiles_permitted() -> bool:
    """Ask Linux for permission to use AMX tile registers: the only safe test, nothing is executed."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def available() -> tuple[str, ...]:
    """List the variants this machine can run, ascending."""
    return supported(cpu_flags())


# The one int that every loaded library reads before a launch; extension.py hands out its address.
_index = ctypes.c_int(-1)


def index_address() -> int:
    """Address of the int that holds the variant in force; the first call makes the choice."""
    if _index.value < 0:
        _index.value = COMPILED.index(choose(cpu_flags(), os.environ.get(ENVIRONMENT_VARIABLE)))
    return ctypes.addressof(_index)


def current() -> str:
    """Name the variant in force."""
    index_address()
    return COMPILED[_index.value]


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Run every CPU op with the variant ``name`` inside the block, in all threads of this process.

    Raises ValueError where this machine cannot run it.
    """
    chosen = COMPILED.index(choose(cpu_flags(), name))
    index_address()
    previous, _index.value = _index.value, chosen
    try:
        yield
    finally:
        _index.value = previous
