"""The wheel carries every source, and its tests judge somebody's file in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("harness", "reference", "kernels")

PLAIN = """
import torch

contract = {"routing": {"logits": "float32", "scores": "float32", "weights": "float32"}}


def routing(logits, bias, *, top_k, renormalize=True, scoring="sigmoid", scale=1.0, eps=0.0,
            indices_dtype=torch.int32, num_valid=None):
    logits = logits.float()
    scores = torch.sigmoid(logits) if scoring == "sigmoid" else torch.softmax(logits, -1)
    chosen = scores if bias is None else scores + bias
    ids = chosen.topk(top_k, sorted=False).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = weights * scale
    if num_valid is not None:
        is_padding = torch.arange(len(ids), device=ids.device)[:, None] >= num_valid
        ids, weights = ids.masked_fill(is_padding, -1), weights.masked_fill(is_padding, 0.0)
    return weights, ids.to(indices_dtype)
"""
IGNORES_THE_BIAS = PLAIN.replace("scores if bias is None else scores + bias", "scores")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build in the checkout would leave old files for the next one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    build: list[str | Path] = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder / "out", folder]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next((folder / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel], check=True)
    return folder


def python(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel and without the editable install: -S leaves its import hook out."""
    packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(installed), *packages))}
    # Inside a worker of pytest-xdist, the inner run is a run of its own.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def judge(installed: Path, folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run the shipped suite on a provider file in a folder that holds nothing else."""
    (folder / "my_kernels.py").write_text(source)
    suite = ("-m", "pytest", "--pyargs", "minimax_m2.harness.conformance", "-m", "cpu", "-n", "0")
    return python(installed, folder, *suite, "--provider", "my_kernels.py", "--op", "routing")


def test_the_wheel_holds_every_source(wheel: Path) -> None:
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file())
    sources = {f"minimax_m2/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("minimax_m2/")}
    assert shipped == sources - {"minimax_m2/kernels/README.md"}


def test_the_wheel_imports_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    names = ", ".join(f"minimax_m2.{room} as {room}" for room in ROOMS)
    show = f"import {names}; print(*harness.__path__, *reference.__path__, *kernels.__path__, sep='\\n')"
    done = python(installed, tmp_path, "-c", show)
    assert done.stdout.split() == [str(installed / "minimax_m2" / room) for room in ROOMS], done.stderr


def test_the_shipped_suite_passes_a_plain_provider(installed: Path, tmp_path: Path) -> None:
    done = judge(installed, tmp_path, PLAIN)
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "CPU: 1 cell" in done.stdout


def test_the_shipped_suite_fails_a_provider_that_ignores_the_bias(installed: Path, tmp_path: Path) -> None:
    done = judge(installed, tmp_path, IGNORES_THE_BIAS)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "and left out expert" in done.stdout
    assert "m2check repro" in done.stdout
