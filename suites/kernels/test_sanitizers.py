"""Kernels built as ``make sanitize`` builds them stop at a planted fault, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.kernels.cpu import extension, isa

# The array is malloc's own, so that what lies beyond it is known to be nobody's.
PROGRAM = """
import ctypes, sys
probe, libc = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
probe.probe_sum.restype = ctypes.c_float
probe.probe_local.restype = ctypes.c_float
x = ctypes.c_void_p(libc.malloc(3 * 4))
libc.memset(x, 0, 12)
assert probe.probe_local(x, 3) == 0.0
print(probe.probe_sum(x, 3, int(sys.argv[2])) is not None, probe.probe_shift(1, int(sys.argv[3])))
"""


def runtime(name: str) -> str:
    found = subprocess.run(
        [extension.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip(f"the compiler ships no {name}")
    return found.stdout.strip()


@pytest.fixture(scope="module", params=isa.available())
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe, instrumented, for one instruction set."""
    folder = tmp_path_factory.mktemp(request.param)
    source = Path(__file__).with_name("sanitizer_probe.cpp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIMAX_M2_SANITIZE", "1")
        # As Ubuntu's compiler does of its own accord.
        patch.setattr(extension, "COMMON_FLAGS", ["-fstack-protector-strong", *extension.COMMON_FLAGS])
        subprocess.run(extension.kernel_command(source, request.param, folder / "probe.o"), check=True)
        flags = extension.common_flags()
    command = [extension.compiler(), *flags, "-shared", str(folder / "probe.o"), "-o", str(folder / "probe.so")]
    subprocess.run(command, check=True)
    return folder / "probe.so"


def run(library: Path, *, whole: int, places: int) -> subprocess.CompletedProcess[str]:
    preload = f"{runtime('libasan.so')} {runtime('libubsan.so')}"
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(library), str(whole), str(places)],
        env={**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_tail_read_within_bounds_is_clean(library: Path) -> None:
    result = run(library, whole=0, places=3)
    assert (result.returncode, result.stdout.strip()) == (0, "True 8"), result.stderr


def test_a_read_beyond_the_end_is_caught(library: Path) -> None:
    result = run(library, whole=1, places=3)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "probe_sum" in result.stderr


def test_undefined_behaviour_is_caught(library: Path) -> None:
    result = run(library, whole=0, places=40)
    assert result.returncode != 0
    assert "shift exponent 40 is too large" in result.stderr
