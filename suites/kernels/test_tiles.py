"""Tile units compute what the vector kernels do: on emulated tiles anywhere, on real ones where they are here."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension, isa
from minimax_m2.kernels.cpu.linear import linear

Linear = Callable[[Tensor, Tensor], Tensor]
BFLOAT16 = 1  # in the order of dtype.h

# Around a tile of 16 tokens, a block of 32 outputs and a step of 32 inputs; odd ones leave every tail at once.
SIZES = [(1, 32, 32), (16, 64, 96), (17, 33, 31), (33, 16, 65), (5, 1, 7), (64, 47, 128)]

CALL = """
#include "linear.h"
extern "C" __attribute__((visibility("default"))) void call(
    const void* x, long x_stride, const void* weight, long weight_stride, void* out, int out_dtype, long tokens,
    long outputs, long depth) {
  using minimax_m2::Dtype;
  minimax_m2::amx::linear({.x = x, .x_stride = x_stride, .weight = weight, .weight_stride = weight_stride,
                           .dtype = Dtype::bfloat16, .out = out, .out_dtype = static_cast<Dtype>(out_dtype),
                           .num_tokens = tokens, .num_outputs = outputs, .depth = depth});
}
namespace minimax_m2::avx512_bf16 { void linear(const LinearArgs&) { __builtin_trap(); } }
"""

pytestmark = pytest.mark.skipif("avx512_bf16" not in isa.available(), reason="a tile unit holds AVX-512 BF16 code")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Linear:
    """The unit of linear with its tiles emulated."""
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "call.cpp").write_text(CALL)
    header = Path(__file__).with_name("tiles_emulated.h")
    sources = [extension.SOURCE_DIR / "linear_amx.cpp", folder / "call.cpp"]
    for source in sources:
        command = extension.kernel_command(source, "amx", folder / f"{source.stem}.o")
        subprocess.run([*command, "-include", str(header)], check=True)
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    command = [extension.compiler(), "-shared", "-fopenmp", *objects, "-o", str(folder / "tiles.so")]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(folder / "tiles.so")).call
    return lambda x, weight: called(function, x, weight)


def called(function: Callable[..., object], x: Tensor, weight: Tensor) -> Tensor:
    out = torch.full((x.shape[0], weight.shape[0]), torch.nan, dtype=torch.bfloat16)
    address, number = ctypes.c_void_p, ctypes.c_long
    function(
        address(x.data_ptr()), number(x.stride(0)), address(weight.data_ptr()), number(weight.stride(0)),
        address(out.data_ptr()), BFLOAT16, number(x.shape[0]), number(weight.shape[0]), number(x.shape[1]),
    )  # fmt: skip
    return out


def whole_numbers(rows: int, columns: int, seed: int) -> Tensor:
    """Small integers in bf16 rows with poisoned gaps: every sum is exact, so order does not matter."""
    generator = torch.Generator().manual_seed(seed)
    room = torch.full((rows, columns + 3), torch.nan, dtype=torch.bfloat16)
    room[:, :columns] = torch.randint(-4, 5, (rows, columns), generator=generator)
    return room[:, :columns]


@pytest.mark.parametrize(("T", "N", "K"), SIZES)
def test_emulated_tiles_give_exact_sums(T: int, N: int, K: int, emulated: Linear) -> None:
    x, weight = whole_numbers(T, K, 1), whole_numbers(N, K, 2)
    assert torch.equal(emulated(x, weight), (x.double() @ weight.double().t()).to(torch.bfloat16))


def test_a_wrong_weight_shows(emulated: Linear) -> None:
    x, weight = whole_numbers(17, 31, 1), whole_numbers(33, 31, 2)
    expected = emulated(x, weight)
    weight[32, 30] += 1
    x[:, 30] = 1
    assert not torch.equal(emulated(x, weight), expected)


@pytest.mark.parametrize("T", [1, 15, 16, 17])
def test_a_token_does_not_see_its_batch_in_tiles(T: int, emulated: Linear) -> None:
    generator = torch.Generator().manual_seed(7)
    x, weight = (torch.randn(rows, 70, generator=generator).to(torch.bfloat16) for rows in (40, 50))
    assert torch.equal(emulated(x[:T], weight), emulated(x, weight)[:T])


@pytest.mark.skipif("amx" not in isa.available(), reason="no AMX, or no permission for its tiles")
@pytest.mark.parametrize(("T", "N", "K"), SIZES)
def test_real_tiles_give_exact_sums(T: int, N: int, K: int) -> None:
    x, weight = whole_numbers(T, K, 1), whole_numbers(N, K, 2)
    with isa.forced("amx"):
        actual = linear(x, weight)
    assert torch.equal(actual, (x.double() @ weight.double().t()).to(torch.bfloat16))
