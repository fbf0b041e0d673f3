"""What a number depends on beside its case: machine, software, commit, and the sources of kernel and method."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minimax_m2.harness.op import all_ops

ROOT = Path(__file__).resolve().parent.parent
# The name of the machine that a record bears; where a fleet hides its hosts' names, this says another.
HOST = "MINIMAX_M2_HOST"
# Versions beside those of Python and torch that kernels and peers are made of.
SOFTWARE = ("numpy", "triton", "transformers", "vllm", "sgl-kernel", "zentorch", "torch_npu")
# How a time is taken: what it calls, on which tensors, and against which roof.
METHOD = ("timing", "stopwatch", "paired", "graph_timing", "roofline", "bits")
NATIVE = (".cpp", ".h", ".cu", ".cuh", ".py")
INCLUDED = re.compile(
    r'#include "(?P<header>[\w./]+)"|minimax_m2\.kernels\.(?P<module>[\w.]+)(?: import (?P<names>[\w, ]+))?'
)


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Processor, accelerator where there is one, threads, software, commit."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return (
        accelerator()
        | software()
        | {
            "processor": model,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": f"{platform.system()} {platform.release()}",
            "host": os.environ.get(HOST) or platform.node(),
            "commit": commit(),
        }
    )


def accelerator() -> dict[str, str]:
    """Name and driver of the current GPU, nothing where there is none."""
    if not torch.cuda.is_available():
        return {}
    driver = Path("/sys/module/nvidia/version")
    known = {"driver": driver.read_text().strip()} if driver.is_file() else {}
    return {"accelerator": torch.cuda.get_device_name()} | known


def software() -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, ``+`` where it was changed since, ``installed`` outside a checkout."""
    return _git("describe", "--always", "--dirty=+", "--abbrev=12") or "installed"


@cache
def position(revision: str = "HEAD") -> dict[str, str | int]:
    """When a commit was made and how many first parents it has: commits in order, whatever their dates."""
    date = _git("log", "-1", "--format=%cI", revision)
    height = _git("rev-list", "--count", "--first-parent", revision)
    return {"committed": date, "height": int(height)} if date and height else {}


def code(op: str, provider: str, device: str) -> dict[str, str | int]:
    """Where in the history a number was made, and hashes of the sources that it was made by and measured with."""
    return position() | {"kernel": kernel_hash(op, provider, device), "method": method_hash(op)}


@cache
def kernel_hash(op: str, provider: str, device: str, root: Path = ROOT) -> str:
    """Hash of all sources that an op of ours or of plain torch is made of; empty for others, whose versions say it.

    The same hash cannot be slower by itself. ``root`` is a tree that holds ``kernels``: this one, or another build's.
    """
    declared = all_ops().get(op)
    stem = op if declared is None else declared.stem or op
    if provider == "ours":
        folder = root / "kernels"
        first = [*sorted((folder / device).glob(f"{stem}.*")), *(folder / device).glob(f"{stem}_*")]
        return digest(included([*first, folder / "schema" / f"{stem}.py"], folder))
    if provider == "plain":
        parts = [stem] if declared is None else [stem, *declared.parts]
        return digest(path for part in parts if (path := ROOT / "reference" / f"{part}.py").is_file())
    return ""


def included(first: Iterable[Path], folder: Path) -> set[Path]:
    """Files and all that they include or import below a folder."""
    found: set[Path] = set()
    left = [path for path in first if path.suffix in NATIVE and path.is_file()]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _named_in(path, folder)
    return found


def _named_in(path: Path, folder: Path) -> Iterator[Path]:
    for match in INCLUDED.finditer(path.read_text(errors="replace")):
        if match["header"]:
            candidates = [path.parent / match["header"]]
        else:
            stem = folder / match["module"].replace(".", "/")
            names = [name.split()[0] for name in (match["names"] or "").split(",") if name.strip()]
            candidates = [stem.with_suffix(".py"), *(stem / f"{name}.py" for name in names)]
        yield from (found for found in candidates if found.is_file())


@cache
def method_hash(op: str) -> str:
    """Hash of what times an op and of what draws its inputs."""
    declared = all_ops().get(op)
    stem = op if declared is None else declared.stem or op
    files = [ROOT / "harness" / f"{name}.py" for name in METHOD]
    return digest(path for path in (*files, ROOT / "harness" / "ops" / f"{stem}.py") if path.is_file())


def digest(paths: Iterable[Path]) -> str:
    """Twelve hex digits of names and contents, whatever the order."""
    sums = sorted(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths)
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:12] if sums else ""


def _git(*words: str) -> str:
    try:
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
