"""Huawei's open compilers in an environment of their own, asked through a process that stays.

``make npu-toolchain`` makes it: wheels below ``.npu/``, and Debian's MLIR tools. Answers are kept by the hash of all
that decides them: kernels, request, compilers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Cards whose numbers of cores differ; every kernel is compiled for both.
CARDS = ("Ascend910B3", "Ascend910_9391")
# What the compilers must do for each level.
STAGES = {"N1": "lower", "N2": "plan", "N3a": "execute", "N3b": "assemble"}
# Levels whose programs run on this CPU.
EXECUTED = ("N3a", "N3b")
DEMAND_VARIABLE = "NPU_MIN_LEVEL"
ENVIRONMENT_VARIABLE = "MINIMAX_M2_NPU_TOOLCHAIN"
MLIR_VARIABLE = "MINIMAX_M2_MLIR"
PROCESS = Path(__file__).with_name("compiler_process.py")
REMEDY = "run make npu-toolchain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A kernel as one launch has it; ``stage`` as in ``compiler_process``."""

    stage: str
    file: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    card: str = CARDS[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the compilers said: ``error`` where they refused. Files lie in ``folder``."""

    folder: Path
    error: str
    found: dict[str, Any]


def home() -> Path:
    """Where the environment lies."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(configured) if configured else Path(__file__).resolve().parents[2] / ".npu"


def mlir() -> Path:
    """Where ``mlir-opt`` of LLVM 19 lies, the release that Huawei's compilers are built on."""
    return Path(os.environ.get(MLIR_VARIABLE, "/usr/lib/llvm-19/bin"))


def absence(level: str = "N1") -> str:
    """Why a level cannot be reached here, or nothing."""
    if not (home() / "bin/python").exists():
        return f"Huawei's compilers are not in {home().name}; {REMEDY}"
    if level in EXECUTED and not (mlir() / "mlir-opt").exists():
        return f"mlir-opt of LLVM 19 is not in {mlir()}; install Debian's mlir-19-tools"
    if level in EXECUTED and linker() is None:
        return "no C++ compiler links what was compiled; install g++"
    return ""


def reason_to_skip(level: str) -> str:
    """Why tests of a level are *not here*, or nothing.

    Raises RuntimeError where ``NPU_MIN_LEVEL`` demands the level all the same.
    """
    reason, demanded = absence(level), os.environ.get(DEMAND_VARIABLE, "")
    if demanded and demanded not in STAGES:
        raise RuntimeError(f"{DEMAND_VARIABLE}={demanded} is no level; use one of {', '.join(STAGES)}")
    if reason and level <= demanded:
        raise RuntimeError(f"{DEMAND_VARIABLE}={demanded} demands {level}, but {reason}")
    return reason


def linker() -> str | None:
    """What makes a shared library of an object."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


class Compiler:
    """The process; ``ask`` starts it on the first request that no kept answer has."""

    def __init__(self, cache_folder: Path | None = None) -> None:
        self._cache = cache_folder or cache_dir()
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no process was needed so far."""
        return self._process is None

    def ask(self, request: Request) -> Answer:
        """Compile as far as the request says.

        Raises RuntimeError where the process dies, which is no answer.
        """
        pairs = {name: dict(getattr(request, name)) for name in ("signature", "constants")}
        question = {**asdict(request), **pairs, "kernels": str(Path(request.file).parent)}
        return self._kept(self._cache / _key(request), question)

    def assemble(self, program: str, name: str) -> Answer:
        """Compile a program of loops over memory, of the kernel ``name``, for this CPU."""
        folder = self._cache / f"{name}-{_hash([program, PROCESS.read_text(), _versions()])}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program.mlir").write_text(program)
        return self._kept(folder, {"stage": "assemble", "kernel": name})

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def _kept(self, folder: Path, question: dict[str, Any]) -> Answer:
        kept = folder / "answer.json"
        if not kept.exists():
            found = self._asked({**question, "out": str(folder), "mlir": str(mlir())})
            # Another process may ask the same: what it finds is whole.
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(found))
            draft.replace(kept)
        found = json.loads(kept.read_text())
        return Answer(folder, found.pop("error", ""), found)

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or _started()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the compilers' process has no pipes")
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"the compilers' process ended with {process.wait()} in {question['kernel']}")
        answer: dict[str, Any] = json.loads(said)
        return answer


@contextmanager
def compiler() -> Iterator[Compiler]:
    """A compiler whose process ends with the block."""
    one = Compiler()
    try:
        yield one
    finally:
        one.close()


def _started() -> subprocess.Popen[str]:
    # Nothing of this environment: not its packages, not what it tells Triton.
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    command = [str(home() / "bin/python"), str(PROCESS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _key(request: Request) -> str:
    sources = sorted(Path(request.file).parent.glob("*.py"))
    parts = [json.dumps(asdict(request)), PROCESS.read_text(), *(path.read_text() for path in sources), _versions()]
    return f"{request.kernel}-{_hash(parts)}"


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@cache
def _versions() -> str:
    """The wheels by name and version, and which MLIR."""
    wheels = sorted(path.name for path in home().glob("lib/python*/site-packages/*.dist-info"))
    return f"{wheels} {mlir()}"


def cache_dir() -> Path:
    root = os.environ.get("MINIMAX_M2_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) / "minimax_m2_npu"
