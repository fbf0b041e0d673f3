"""The vector vocabulary means the same on every ISA: conversions bit for bit, functions within their stated ulp."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension, isa

STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max


@pytest.fixture(scope="module", params=isa.available())
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp(request.param)
    source = Path(__file__).with_name("vector_probe.cpp")
    subprocess.run(extension.kernel_command(source, request.param, folder / "probe.o"), check=True)
    subprocess.run([extension.compiler(), "-shared", folder / "probe.o", "-o", folder / "probe.so"], check=True)
    library = ctypes.CDLL(str(folder / "probe.so"))
    for name in ("reduce_add", "reduce_max", "reduce_min"):
        getattr(library, f"probe_{name}").restype = ctypes.c_float
    return library


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def address(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def bits(x: Tensor) -> Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def in_vectors(function: Callable[..., None], x: Tensor, dtype: torch.dtype, lanes: int) -> Tensor:
    """Apply a one-vector probe to ``x`` (a multiple of ``lanes`` long), vector by vector."""
    out = torch.empty(x.shape, dtype=dtype)
    for i in range(0, len(x), lanes):
        function(address(x[i:]), address(out[i:]))
    return out


def every_code(dtype: torch.dtype) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return torch.arange(2 ** (8 * dtype.itemsize)).to(integer).view(dtype)


def wide_floats() -> Tensor:
    """Float32 of every exponent, halfway cases of the narrow formats, infinities and NaN."""
    spread = torch.arange(-(2**31), 2**31, 65521 * 16, dtype=torch.int64).to(torch.int32).view(torch.float32)
    codes = torch.cat([every_code(dtype).float() for dtype in STORAGE[1:]])
    finite = codes[codes.isfinite()].sort().values
    halves = (finite[1:].double() + finite[:-1].double()).div(2).float()
    x = torch.cat([spread, halves, torch.tensor([torch.inf, -torch.inf, torch.nan, 448.0, 464.0, 1e30, -0.0])])
    return torch.cat([x, x.new_zeros(-len(x) % 16)])


@pytest.mark.parametrize("dtype", STORAGE[1:], ids=name_of)
def test_loading_widens_every_code_exactly(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    codes = every_code(dtype)
    actual = in_vectors(getattr(probe, f"probe_load_{name_of(dtype)}"), codes, torch.float32, probe.probe_lanes())
    torch.testing.assert_close(actual, codes.float(), rtol=0, atol=0, equal_nan=True)
    number = ~actual.isnan()
    assert torch.equal(actual.signbit()[number], codes.float().signbit()[number])


def test_widening_e4m3_to_bfloat16_keeps_every_code_and_deals_out_runs_of_eight(probe: ctypes.CDLL) -> None:
    codes, taken = every_code(torch.float8_e4m3fn), 4 * probe.probe_lanes()
    actual = in_vectors(probe.probe_widen, codes, torch.bfloat16, taken)
    # [calls, runs, first or second, 8] to [calls, first or second, runs, 8]
    expected = codes.to(torch.bfloat16).view(-1, taken // 16, 2, 8).transpose(1, 2).flatten()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    number = ~actual.isnan()
    assert torch.equal(bits(actual)[number], bits(expected)[number])


@pytest.mark.parametrize("dtype", STORAGE[1:], ids=name_of)
def test_storing_rounds_to_nearest_even_as_torch_does(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    x = wide_floats()
    actual = in_vectors(getattr(probe, f"probe_store_{name_of(dtype)}"), x, dtype, probe.probe_lanes())
    saturated = x.clamp(-E4M3_MAX, E4M3_MAX) if dtype is torch.float8_e4m3fn else x
    expected = saturated.to(dtype)
    number = ~x.isnan()
    assert torch.equal(bits(actual)[number], bits(expected)[number])
    assert actual.float()[~number].isnan().all()


@pytest.mark.parametrize("dtype", STORAGE[1:], ids=name_of)
def test_scalar_rounding_is_bit_identical_to_the_vector(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    x = wide_floats()[wide_floats().isfinite()]
    x = x[: len(x) // 16 * 16]
    vector = in_vectors(getattr(probe, f"probe_store_{name_of(dtype)}"), x, dtype, probe.probe_lanes())
    scalar = torch.empty_like(vector)
    getattr(probe, f"probe_scalar_{name_of(dtype)}")(address(x), address(scalar), len(x))
    assert torch.equal(bits(scalar), bits(vector))


@pytest.mark.parametrize("dtype", STORAGE, ids=name_of)
def test_a_tail_reads_and_writes_its_lanes_only(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    lanes = probe.probe_lanes()
    wide = torch.arange(1, lanes + 1, dtype=torch.float32)
    narrow = wide.to(dtype)
    for n in range(lanes + 1):
        loaded, stored = torch.full((lanes,), torch.nan), torch.full((lanes,), 32.0).to(dtype)
        getattr(probe, f"probe_load_tail_{name_of(dtype)}")(address(narrow), address(loaded), n)
        getattr(probe, f"probe_store_tail_{name_of(dtype)}")(address(wide), address(stored), n)
        assert loaded.tolist() == wide.tolist()[:n] + [0.0] * (lanes - n)
        assert stored.float().tolist() == wide.tolist()[:n] + [32.0] * (lanes - n)


def error_in_ulp(actual: Tensor, exact: Tensor) -> Tensor:
    """Distance in units of the last place of the exact value's float32 binade; infinite where only one overflows."""
    unit = torch.exp2((exact.abs().log2().floor() - 23).clamp(-149, 104))
    same = actual.double() == exact.float().double()
    return torch.where(same, 0.0, (actual.double() - exact).abs() / unit)


@pytest.mark.parametrize(
    ("name", "exact", "lowest", "ulp"),
    [
        # The bounds that vector.h states. silu is stated from -87 up.
        ("exp", torch.exp, -200.0, 1.1),
        ("sigmoid", torch.sigmoid, -200.0, 2.5),
        ("silu", torch.nn.functional.silu, -87.0, 3.5),
        ("rsqrt", torch.rsqrt, 1e-38, 1.5),
    ],
)
def test_functions_keep_their_stated_accuracy(
    probe: ctypes.CDLL, name: str, exact: Callable[[Tensor], Tensor], lowest: float, ulp: float
) -> None:
    every_997th = torch.arange(-(2**31), 2**31, 997, dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = every_997th[every_997th.isfinite() & (every_997th >= lowest)].contiguous()
    actual = torch.empty_like(x)
    getattr(probe, f"probe_{name}")(address(x), address(actual), ctypes.c_int64(len(x)))
    error = error_in_ulp(actual, exact(x.double()))
    assert error.max() <= ulp, f"{name}({x[error.argmax()]:.9g}) is {error.max():.2f} ulp off"


def test_functions_keep_infinities_and_nan(probe: ctypes.CDLL) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    actual = {name: torch.empty_like(x) for name in ("exp", "sigmoid")}
    for name, out in actual.items():
        getattr(probe, f"probe_{name}")(address(x), address(out), ctypes.c_int64(4))
    assert str(actual["exp"].tolist()) == "[inf, 0.0, nan, 1.0]"
    assert str(actual["sigmoid"].tolist()) == "[1.0, 0.0, nan, 0.5]"


def test_reductions_and_compress_see_every_lane(probe: ctypes.CDLL) -> None:
    lanes = probe.probe_lanes()
    x = torch.exp2(torch.arange(lanes, dtype=torch.float32))[torch.arange(lanes) * 5 % lanes].contiguous()
    chosen = torch.empty(lanes)
    count = probe.probe_compress(address(x), ctypes.c_float(2.0), address(chosen))
    assert probe.probe_reduce_add(address(x)) == 2.0**lanes - 1
    assert probe.probe_reduce_max(address(x)) == 2.0 ** (lanes - 1)
    assert probe.probe_reduce_min(address(x)) == 1.0
    assert chosen[:count].tolist() == [value for value in x.tolist() if value > 2.0]


def test_four_sums_at_once_have_the_bits_of_each(probe: ctypes.CDLL) -> None:
    lanes, four = probe.probe_lanes(), torch.empty(4)
    # Terms of many sizes: another tree would round elsewhere.
    drawn = torch.randn(64, 4, lanes, generator=torch.Generator().manual_seed(3))
    x = drawn * torch.exp2(torch.arange(lanes) * 7 % 11)
    for terms in x:
        probe.probe_reduce_four(address(terms), address(four))
        assert four.tolist() == [probe.probe_reduce_add(address(row)) for row in terms]


def test_dot_of_small_integers_is_exact(probe: ctypes.CDLL) -> None:
    lanes = probe.probe_lanes()
    a = (torch.arange(2 * lanes) - lanes).to(torch.bfloat16)
    b = (3 * torch.arange(2 * lanes) % 17 - 8).to(torch.bfloat16)
    start = torch.arange(lanes, dtype=torch.float32)
    acc, broadcast = start.clone(), start.clone()
    probe.probe_dot(address(a), address(b), address(acc))
    probe.probe_dot_broadcast(address(a), address(b), address(broadcast))
    assert torch.equal(acc, start + (a.float() * b.float()).view(-1, 2).sum(-1))
    assert torch.equal(broadcast, start + (a[:2].float() * b.float().view(-1, 2)).sum(-1))


# Where two byte products meet in 16 bits, and where a code is biased, the extremes show.
@pytest.mark.parametrize("codes", [(127, 127, 127, 127), (-127, -127, -127, -127), (1, -2, 127, -127), (0, 0, 0, 5)])
@pytest.mark.parametrize("extreme", [-128, 127])
def test_dot_of_codes_is_exact_at_the_extremes(probe: ctypes.CDLL, codes: tuple[int, ...], extreme: int) -> None:
    lanes = probe.probe_lanes()
    b = torch.full((lanes, 4), extreme, dtype=torch.int8)
    b[1:] = (torch.arange(4 * (lanes - 1)) * 29 % 256 - 128).to(torch.int8).view(-1, 4)
    held, start = torch.zeros(lanes), torch.arange(lanes, dtype=torch.int32) - 7
    held[:4] = torch.tensor(codes)
    acc = start - probe.probe_code_bias() * b.int().sum(-1).to(torch.int32)
    probe.probe_dot_codes(address(held), address(b), address(acc))
    assert acc.tolist() == (start + (b.int() * torch.tensor(codes)).sum(-1)).tolist()
