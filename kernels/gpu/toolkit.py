"""Compiles CUDA C++ on first use: ``<stem>.cu`` becomes a shared library in the cache of built kernels.

Keyed by the source, the headers of this folder that it reaches, flags, compiler and architecture. A machine without
nvcc has no such kernels, and every predicate that could choose one asks ``compiler`` first.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from minimax_m2.kernels.cpu.extension import CompileError, cache_dir

SOURCE_DIR = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
# What each unit is compiled for; instructions of sm_90a exist on no other architecture.
EVERY = ("90a", "100a", "120a")
ARCHITECTURES = {
    "scaled_product": ("90a",),
    "sum_add_rms_norm": ("80", "90", "100", "120"),
    "router_rows": EVERY,
    "router_tiles": EVERY,
    "router_wide": ("90a",),
    "attention_rows": ("90a",),
    "experts_halves": ("90a",),
}
# By compute capability, where a kernel may start before the one ahead has ended.
EARLY = {90: "90a", 100: "100a", 120: "120a"}


@functools.cache
def compiler() -> str | None:
    """nvcc: ``$NVCC``, else on the path, else below ``$CUDA_HOME`` or /usr/local/cuda; None where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(os.environ.get("NVCC", "nvcc")) or shutil.which(str(Path(home, "bin", "nvcc")))


@functools.cache
def loaded(stem: str, architecture: str) -> ctypes.CDLL:
    """The library of a unit, built now unless the cache has it.

    Raises CompileError where a build is needed and fails.
    """
    return ctypes.CDLL(str(build(stem, architecture)))


def build(stem: str, architecture: str) -> Path:
    """Return the path of a unit's library for ``sm_<architecture>``, compiled now if the cache lacks it."""
    library = cache_dir() / f"{stem}-{build_key(stem, architecture)}.so"
    if not library.exists():
        cache_dir().mkdir(parents=True, exist_ok=True)
        with (cache_dir() / f"{stem}-{architecture}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(stem, architecture, library)
    return library


def build_key(stem: str, architecture: str) -> str:
    """Hash everything a build depends on."""
    digest = hashlib.sha256(repr((FLAGS, architecture, _version(_needed()))).encode())
    for path in sources(stem):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sources(stem: str) -> list[Path]:
    """A unit's source and the headers of this folder that it reaches."""
    reached, queue = [], [SOURCE_DIR / f"{stem}.cu"]
    while queue:
        path = queue.pop()
        if path not in reached:
            reached.append(path)
            queue += [SOURCE_DIR / name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)]
    return reached


def command(stem: str, architecture: str, target: Path) -> list[str]:
    """Give the command that compiles a unit."""
    virtual = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    return [_needed(), *FLAGS, virtual, str(SOURCE_DIR / f"{stem}.cu"), "-o", str(target)]


def demand_launched(library: ctypes.CDLL, wrong: int, what: str) -> None:
    """Raise RuntimeError where a launch of a unit gave a CUDA error."""
    if wrong:
        library.minimax_m2_error.restype = ctypes.c_char_p
        raise RuntimeError(f"{what} was not launched: {library.minimax_m2_error(wrong).decode()} (CUDA error {wrong})")


def _needed() -> str:
    found = compiler()
    if found is None:
        raise CompileError("no nvcc: install the CUDA toolkit 12.5 or newer, put nvcc on the path, or set NVCC")
    return found


@functools.cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def _compile(stem: str, architecture: str, library: Path) -> None:
    """Compile into a scratch file and rename it, so that a library in the cache is always whole."""
    with tempfile.TemporaryDirectory(prefix=f"{stem}-", dir=cache_dir()) as folder:
        scratch = Path(folder, library.name)
        words = command(stem, architecture, scratch)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"nvcc failed with status {done.returncode}\n  {' '.join(words)}\n{done.stderr}")
        scratch.rename(library)
