"""The wheel carries every source and works without the checkout."""

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
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


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
