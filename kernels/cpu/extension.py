"""Compiles an op's C++ on first use into a cache, loads it, and binds it to the ISA switch.

An op is a stem with ``<op>_binding.cpp``. Its kernel sources are ``<op>.cpp`` and continuations ``<op>_<suffix>.cpp``
(unless the longer stem is an op itself). Kernel sources are compiled once per vector ISA, the binding once; a source
``<op>_amx.cpp`` is that op's tile unit and compiled for ``amx`` alone. One shared library per op, keyed by every source
and header it includes, flags, compiler and torch.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from minimax_m2.kernels.cpu import isa, node_shares

SOURCE_DIR = Path(__file__).parent
TORCH_DIR = Path(torch.__file__).parent

# Contraction off: a product is fused where a source says fma, so an object's results do not hang on the compiler.
# Never -ffast-math: NaN, infinities and the order of sums are part of the contract.
COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-unused-function",
]
_AVX512_FLAGS = [
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
]
_AVX512_BF16_FLAGS = [*_AVX512_FLAGS, "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi"]
ISA_FLAGS: dict[str, list[str]] = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": _AVX512_FLAGS,
    "avx512_bf16": _AVX512_BF16_FLAGS,
    "amx": [*_AVX512_BF16_FLAGS, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}
# The stable ABI of torch 2.11, the oldest this project supports.
BINDING_FLAGS = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *("-isystem", str(TORCH_DIR / "include"), "-isystem", str(TORCH_DIR / "include/torch/csrc/api/include")),
]
LINK_FLAGS = ["-shared", "-fopenmp", f"-L{TORCH_DIR / 'lib'}", "-ltorch_cpu"]
# Where MINIMAX_M2_SANITIZE is set, every object reports a read or write out of bounds and undefined behaviour, and
# stops. The process must have been started with the runtimes loaded: ci/sanitize.sh does.
SANITIZE_FLAGS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    # Where both watch the stack, GCC 12 and 13 misalign a vector's local variable; Ubuntu turns the protector on.
    "-fno-stack-protector",
    "-g1",
    "-O1",
]
PARALLEL_COMPILES = 2

Progress = Callable[[str], None]


class CompileError(RuntimeError):
    """A compiler that is missing or that failed, with its output and the remedy."""


def ops() -> list[str]:
    """List the ops that have a CPU kernel."""
    return sorted(path.stem.removesuffix("_binding") for path in SOURCE_DIR.glob("*_binding.cpp"))


def load(op: str, *, progress: Progress | None = None) -> ctypes.CDLL:
    """Build ``op``'s library unless the cache has it, load it, and register its kernels with torch; once a process.

    Raises CompileError where a build is needed and fails.
    """
    if op not in _loaded:
        library = build(op, progress=progress)
        torch.ops.load_library(str(library))
        handle = ctypes.CDLL(str(library))
        handle.minimax_m2_bind_isa(ctypes.c_void_p(isa.index_address()))
        if hasattr(handle, "minimax_m2_bind_nodes"):
            handle.minimax_m2_bind_nodes(ctypes.c_void_p(node_shares.view_address()))
        _loaded[op] = handle
    return _loaded[op]


def build_all(progress: Progress | None = None) -> list[Path]:
    """Build the library of every op; ``progress`` gets a line per compiled object."""
    return [build(op, progress=progress) for op in ops()]


def build(op: str, *, progress: Progress | None = None) -> Path:
    """Return the path of ``op``'s library, compiled now if the cache lacks it. Its objects lie beside it."""
    folder = cache_dir() / f"{op}-{build_key(op)}"
    library = folder / f"{op}.so"
    if not library.exists():
        cache_dir().mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir() / f"{op}.lock"):
            if not library.exists():
                _compile(op, folder, progress or (lambda line: None))
    return library


def cache_dir() -> Path:
    """Folder of the built libraries: ``$MINIMAX_M2_CACHE``, else ``minimax_m2`` in the user's cache folder."""
    if configured := os.environ.get("MINIMAX_M2_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimax_m2"


def kernel_sources(op: str) -> list[Path]:
    """List an op's kernel files: ``<op>.cpp`` and its continuations, a tile unit among them."""
    known = ops()

    def owner(stem: str) -> str:
        return max((name for name in known if stem == name or stem.startswith(name + "_")), key=len, default="")

    paths = SOURCE_DIR.glob(f"{op}*.cpp")
    return sorted(path for path in paths if not path.stem.endswith("_binding") and owner(path.stem) == op)


def has_tiles(op: str) -> bool:
    """Whether ``op`` has a tile unit, and with it the variant ``amx``."""
    return (SOURCE_DIR / f"{op}_amx.cpp").exists()


def units(op: str) -> list[tuple[Path, str]]:
    """List what is compiled for ``op``: pairs of a kernel source and an ISA, ascending by ISA."""
    tiles = SOURCE_DIR / f"{op}_amx.cpp"
    vector = [source for source in kernel_sources(op) if source != tiles]
    found = [(source, name) for name in isa.VECTOR for source in vector]
    return [*found, (tiles, "amx")] if has_tiles(op) and "amx" in isa.COMPILED else found


def build_key(op: str) -> str:
    """Hash everything a build depends on: sources, the headers they reach, flags, compiler, torch.

    Not where torch lies: environments that have the same version share libraries.
    """
    flags = repr((common_flags(), ISA_FLAGS, BINDING_FLAGS, LINK_FLAGS, isa.COMPILED))
    digest = hashlib.sha256(flags.replace(str(TORCH_DIR), "torch").encode())
    digest.update(f"{torch.__version__} {compiler_version(compiler())}".encode())
    for path in _reached([*kernel_sources(op), SOURCE_DIR / f"{op}_binding.cpp"]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> str:
    """Find the C++ compiler: ``$CXX``, else ``g++``, else ``c++``.

    Raises CompileError where there is none.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise CompileError(
            f"no C++ compiler: tried {', '.join(wanted)}. The CPU kernels are compiled on first use; "
            "install g++ 12 or newer (Debian: apt-get install g++) or set CXX to a compiler"
        )
    return found


def common_flags() -> list[str]:
    """Flags of every object and of the link."""
    return [*COMMON_FLAGS, *(SANITIZE_FLAGS if os.environ.get("MINIMAX_M2_SANITIZE") else [])]


def kernel_command(source: Path, name: str, target: Path) -> list[str]:
    """Give the command that compiles one kernel source for the ISA ``name`` into the object ``target``."""
    chosen = [f"-DMINIMAX_M2_ISA={name}", f'-DMINIMAX_M2_VECTOR_HEADER="vector_{name}.h"', f"-I{SOURCE_DIR}"]
    return [compiler(), *common_flags(), *ISA_FLAGS[name], *chosen, "-c", str(source), "-o", str(target)]


@functools.cache
def compiler_version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


_loaded: dict[str, ctypes.CDLL] = {}


def _reached(sources: list[Path]) -> list[Path]:
    """List sources and, transitively, the headers of this folder that they name; ISA headers all count."""
    reached, queue = set(), [*sources, *SOURCE_DIR.glob("vector_*.h")]
    while queue:
        path = queue.pop()
        if path not in reached and path.exists():
            reached.add(path)
            queue += [SOURCE_DIR / name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)]
    return sorted(reached)


def _compile(op: str, folder: Path, progress: Progress) -> None:
    """Compile into a scratch folder and rename it, so that a library in the cache is always whole."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{op}-", dir=cache_dir()))
    try:
        # Ascending ISA order at the link: an inline function of the standard library that several objects
        # hold is taken from the first, which every processor can run.
        jobs = units(op)
        objects = [scratch / f"{source.stem}.{name}.o" for source, name in jobs]
        commands = [kernel_command(source, name, target) for (source, name), target in zip(jobs, objects, strict=True)]
        binding = scratch / f"{op}_binding.o"
        source = SOURCE_DIR / f"{op}_binding.cpp"
        commands.insert(0, [compiler(), *common_flags(), *BINDING_FLAGS, "-c", str(source), "-o", str(binding)])
        library = scratch / f"{op}.so"
        with ThreadPoolExecutor(PARALLEL_COMPILES) as pool:
            for command, _ in zip(commands, pool.map(_run, commands), strict=True):
                progress(f"{op}: compiled {Path(command[-1]).name}")
        _run([compiler(), *common_flags(), *map(str, objects), str(binding), *LINK_FLAGS, "-o", str(library)])
        progress(f"{op}: linked")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CompileError(
            f"{Path(command[0]).name} failed with status {result.returncode}\n  {' '.join(command)}\n{result.stderr}"
            "The compiler's message above names the cause; g++ 12 or newer is known to work, CXX selects another"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, so that two processes do not build one library twice."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
