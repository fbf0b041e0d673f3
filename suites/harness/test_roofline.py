"""What no device can do: bytes beyond its memory's clock, flops beyond its tensor cores'."""

from __future__ import annotations

from types import SimpleNamespace

from minimax_m2.harness.op import Cost
from minimax_m2.harness.roofline import Ceiling, Roof, ceiling_of

# An H200 by its driver: kHz, bits, multiprocessors.
H200 = SimpleNamespace(
    clock_rate=1980000, memory_clock_rate=3201000, memory_bus_width=6144, multi_processor_count=132, major=9, minor=0
)
ROOF = Roof({1 << 20: 1e12, 1 << 30: 4e12}, {"float32": 5e13}, ceiling_of(H200))
LARGE = Cost(bytes=10**9, flops=10**9)


def test_a_ceiling_is_the_clock_times_the_width() -> None:
    found = ceiling_of(H200)
    assert found is not None
    assert found.bandwidth == 4.916736e12
    assert found.flops["bfloat16"] == 4096 * 132 * 1.98e9
    assert found.flops["float8_e4m3fn"] == 2 * found.flops["bfloat16"]


def test_a_device_that_tells_no_clocks_has_no_ceiling() -> None:
    assert ceiling_of(SimpleNamespace(clock_rate=0, memory_clock_rate=0)) is None
    assert Roof({1: 1.0}, {"float32": 1.0}).impossible(LARGE, "float32", 1e-12) == ""


def test_an_unknown_architecture_has_a_ceiling_of_bytes_only() -> None:
    found = ceiling_of(SimpleNamespace(**vars(H200) | {"major": 7, "minor": 5}))
    assert found == Ceiling(4.916736e12, {})


def test_bytes_that_the_memory_cannot_move_are_impossible() -> None:
    assert ROOF.impossible(LARGE, "bfloat16", 2e-4).endswith("are 5 TB/s; the memory has 4.92")
    assert ROOF.impossible(LARGE, "bfloat16", 2.1e-4) == ""


def test_bytes_that_a_cache_may_hold_prove_nothing() -> None:
    assert ROOF.impossible(Cost(bytes=10**6, flops=0), "bfloat16", 1e-7) == ""


def test_flops_beyond_the_tensor_cores_are_impossible() -> None:
    work = Cost(bytes=1000, flops=2 * 10**12)
    assert "TFLOP/s; 1071 are there" in ROOF.impossible(work, "bfloat16", 1.8e-3)
    assert ROOF.impossible(work, "float8_e4m3fn", 1.8e-3) == ""
    # float32 factors may be cut in pieces for the tensor cores: no one number bounds them.
    assert ROOF.impossible(work, "float32", 1e-6) == ""


def test_a_case_beyond_every_working_set_takes_the_largest_ones_bandwidth() -> None:
    assert ROOF.seconds(Cost(bytes=1 << 32, flops=0), "float32") == (1 << 32) / 4e12
