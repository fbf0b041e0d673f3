"""bfloat16 in the interpreter: converted as silicon converts it, and never computed on as the words that hold it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy
import pytest
import torch

from minimax_m2.harness.npu.interpreted_bfloat16 import narrowed, widened

pytest.importorskip("triton", reason="Triton is not installed; the level N0 is not here")

KERNELS = """
import sys, torch, triton, triton.language as tl
from minimax_m2.harness.npu.interpreted_bfloat16 import install

@triton.jit
def narrow(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(tl.bfloat16))

@triton.jit
def add(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i) + tl.load(x_ptr + i))

@triton.jit
def total(x_ptr, y_ptr, N: tl.constexpr):
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, N)), 0))

kernel, mended = sys.argv[1:]
if mended == "mended":
    install()
values = torch.linspace(-3, 3, 64)
x = values if kernel == "narrow" else values.bfloat16()
y = torch.zeros(64, dtype=torch.bfloat16)
globals()[kernel][(1,)](x, y, N=64)
right = {"narrow": values.bfloat16(), "add": x + x, "total": y}[kernel]
print("right" if torch.equal(y, right) else "wrong")
"""


def ran(kernel: str, mended: str, tmp_path: object) -> subprocess.CompletedProcess[str]:
    file = f"{tmp_path}/kernels.py"
    with open(file, "w") as out:
        out.write(KERNELS)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, file, kernel, mended]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("kernel", ["narrow", "add"])
def test_the_interpreter_as_it_comes_is_wrong(kernel: str, tmp_path: object) -> None:
    assert ran(kernel, "as it comes", tmp_path).stdout == "wrong\n"


def test_mended_it_rounds_to_nearest_even(tmp_path: object) -> None:
    assert ran("narrow", "mended", tmp_path).stdout == "right\n"


@pytest.mark.parametrize("kernel", ["add", "total"])
def test_mended_it_refuses_to_compute_on_words(kernel: str, tmp_path: object) -> None:
    done = ran(kernel, "mended", tmp_path)
    assert done.returncode != 0
    assert "raw words" in done.stderr


def test_every_word_is_widened_and_narrowed_as_torch_does() -> None:
    words = numpy.arange(2**16, dtype=numpy.uint16)
    expected = torch.from_numpy(words.view(numpy.int16)).view(torch.bfloat16).float()
    actual = torch.from_numpy(widened(words))
    assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0))
    halfway = torch.cat([expected, torch.nextafter(expected, torch.zeros(())), expected * (1 + 2.0**-8)])
    found = torch.from_numpy(narrowed(halfway.numpy()).view(numpy.int16)).view(torch.bfloat16)
    assert torch.equal(found.float().nan_to_num(7.0), halfway.bfloat16().float().nan_to_num(7.0))
