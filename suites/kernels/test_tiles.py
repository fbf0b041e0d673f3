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
from minimax_m2.kernels.cpu.experts import PackedExperts, experts, pack_experts
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

CALL_EXPERTS = """
#include "experts.h"
extern "C" __attribute__((visibility("default"))) void call(
    const void* x, const void* w13, const void* w2, const float* weights, const void* ids, void* out, long tokens,
    long top_k, long num_experts, long hidden, long width) {
  using minimax_m2::Dtype;
  minimax_m2::amx::experts({.x = x, .x_stride = hidden, .x_dtype = Dtype::bfloat16, .x_scale = nullptr, .w13 = w13,
                            .w2 = w2, .weight_dtype = Dtype::bfloat16, .w13_scale = nullptr, .w2_scale = nullptr,
                            .w13_scale_width = 0, .w2_scale_width = 0, .w13_start = nullptr, .w2_start = nullptr,
                            .weights = weights, .ids = ids, .ids_dtype = Dtype::int64, .expert_map = nullptr,
                            .num_mapped = 0, .out = out, .out_dtype = Dtype::float32, .act_dtype = Dtype::bfloat16,
                            .num_tokens = tokens, .top_k = top_k, .num_experts = num_experts, .hidden = hidden,
                            .width = width, .columns = 128});
}
namespace minimax_m2::avx512_bf16 { int64_t experts(const ExpertsArgs&) { __builtin_trap(); } }
"""

pytestmark = pytest.mark.skipif("avx512_bf16" not in isa.available(), reason="a tile unit holds AVX-512 BF16 code")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Linear:
    """The unit of linear with its tiles emulated."""
    function = emulated_unit(tmp_path_factory.mktemp("tiles"), "linear_amx.cpp", CALL)
    return lambda x, weight: called(function, x, weight)


def emulated_unit(folder: Path, unit: str, call: str) -> Callable[..., object]:
    """A unit and what calls it, compiled with the tiles emulated."""
    (folder / "call.cpp").write_text(call)
    header = Path(__file__).with_name("tiles_emulated.h")
    sources = [extension.SOURCE_DIR / unit, folder / "call.cpp"]
    for source in sources:
        command = extension.kernel_command(source, "amx", folder / f"{source.stem}.o")
        subprocess.run([*command, "-include", str(header)], check=True)
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    command = [extension.compiler(), "-shared", "-fopenmp", *objects, "-o", str(folder / "tiles.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "tiles.so")).call


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


# One slot, a tile, two, and slots behind; a step of 32 inputs, odd ends of both products.
EXPERTS = [(1, 64, 32), (9, 33, 21), (16, 32, 33), (35, 70, 40)]


def gates_of_128(T: int, H: int, width: int) -> tuple[Tensor, PackedExperts, Tensor, Tensor]:
    """Two experts of whole numbers whose gates SiLU leaves as they are, or cuts off: every sum is exact."""
    x, up, w2 = (whole_numbers(rows, columns, seed) for rows, columns, seed in
                 ((T, H, 3), (2 * width, H, 4), (2 * H, width, 5)))  # fmt: skip
    x, gate = x.sign().contiguous(), torch.zeros(2, width, H)
    x[:, 0], gate[..., 0] = 1, 128.0 * (torch.arange(2 * width).view(2, width) % 3 > 0) - 64
    w13 = torch.cat([2 * gate, up.sign().float().view(2, width, H)], 1).bfloat16()
    ids = torch.stack([torch.zeros(T, dtype=torch.int64), torch.arange(T) % 3 - 1], 1)
    return x, pack_experts(w13, w2.sign().reshape(2, H, width)), torch.full((T, 2), 0.5), ids


@pytest.fixture(scope="module")
def emulated_experts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tensor]:
    """The unit of experts with its tiles emulated."""
    function = emulated_unit(tmp_path_factory.mktemp("experts"), "experts_amx.cpp", CALL_EXPERTS)

    def call(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor) -> Tensor:
        out, (_, H, width, _) = torch.full(x.shape, torch.nan), packed.extent.shape
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (x, packed.w13, packed.w2, weights, ids, out)]
        function(*addresses, *map(ctypes.c_long, (len(x), 2, 2, H, width)))
        return out

    return call


@pytest.mark.parametrize(("T", "H", "width"), EXPERTS)
def test_emulated_tiles_of_experts_give_exact_sums(
    T: int, H: int, width: int, emulated_experts: Callable[..., Tensor]
) -> None:
    given = gates_of_128(T, H, width)
    with isa.forced("avx512_bf16"):
        expected = experts(*given, out_dtype=torch.float32)
    assert torch.equal(emulated_experts(*given), expected)
    assert bool(expected.any())


def test_a_token_does_not_see_its_batch_in_tiles_of_experts(emulated_experts: Callable[..., Tensor]) -> None:
    x, packed, weights, ids = gates_of_128(40, 70, 40)
    x = (x * (torch.arange(70) % 7 + 1) / 3).contiguous()  # sums that round
    whole = emulated_experts(x, packed, weights, ids)
    for T in (1, 15, 16, 17, 33):
        assert torch.equal(emulated_experts(x[:T], packed, weights[:T], ids[:T]), whole[:T])


@pytest.mark.skipif("amx" not in isa.available(), reason="no AMX, or no permission for its tiles")
@pytest.mark.parametrize(("T", "H", "width"), EXPERTS)
def test_real_tiles_of_experts_give_exact_sums(T: int, H: int, width: int) -> None:
    given, results = gates_of_128(T, H, width), []
    for name in ("avx512_bf16", "amx"):
        with isa.forced(name):
            results.append(experts(*given, out_dtype=torch.float32))
    assert torch.equal(*results)
