"""What is special to the CPU kernel of a gated delta net's gates; its numbers are judged by the harness."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.gdn_gating import gdn_gating, gdn_gating_out

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def given(T: int = 3, Hv: int = 33, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Distinct numbers of both signs, rows apart from each other."""
    wide = ((torch.arange(T * (2 * Hv + 3)) * 37 % 251 - 125) / 32).reshape(T, 2 * Hv + 3).to(dtype)
    parameter = (torch.arange(Hv) % 7 - 3.0) / 2
    return {"A_log": parameter, "a": wide[:, 3 : Hv + 3], "b": wide[:, Hv + 3 :], "dt_bias": parameter.to(dtype)}


def test_opcheck_accepts_the_op() -> None:
    outputs = torch.empty(3, 33), torch.empty(3, 33)
    torch.library.opcheck(torch.ops.minimax_m2.gdn_gating.default, (*given().values(), *outputs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_the_gates_as_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(gdn_gating, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert all(map(torch.equal, compiled(**given()), gdn_gating(**given())))


@pytest.mark.parametrize("name", isa.available())
def test_threads_and_neighbours_change_no_bit(name: str) -> None:
    before = torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = gdn_gating(**given(1000))
        torch.set_num_threads(3)
        shared = gdn_gating(**given(1000))
        torch.set_num_threads(before)
        first = gdn_gating(**given(1))
    assert all(map(torch.equal, alone, shared))
    assert all(torch.equal(one, many[:1]) for one, many in zip(first, shared, strict=True))


@pytest.mark.parametrize("name", isa.available())
def test_a_nan_spoils_its_own_gates_only(name: str) -> None:
    spoilt = given()
    spoilt["a"][1, 32] = spoilt["b"][2, 0] = torch.nan
    with isa.forced(name):
        g, beta = gdn_gating(**spoilt)
    assert g.isnan().nonzero().tolist() == [[1, 32]]
    assert beta.isnan().nonzero().tolist() == [[2, 0]]


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize(
    ("x", "expected"), [(120.0, -120.0), (-120.0, 0.0), (-torch.inf, 0.0), (torch.inf, -torch.inf)]
)
def test_a_saturated_gate_is_no_nan(name: str, x: float, expected: float) -> None:
    one = torch.full((1, 1), x)
    with isa.forced(name):
        g, beta = gdn_gating(torch.zeros(1), one, one, torch.zeros(1))
    assert g.item() == expected
    assert beta.item() == float(x > 0)


ALLOWED = {dtype: {torch.float32, dtype} for dtype in FLOATS}
PAIRS = [pair for pair in product(("A_log", "dt_bias"), FLOATS, FLOATS)]


@pytest.mark.parametrize(("name", "dtype", "other"), [p for p in PAIRS if p[2] in ALLOWED[p[1]]], ids=str)
def test_parameters_of_float32_and_of_the_activations_dtype_are_taken(
    name: str, dtype: torch.dtype, other: torch.dtype
) -> None:
    mixed = given(dtype=dtype)
    mixed[name] = mixed[name].to(other)
    # Halves up to 1.5 are exact in every format, so the result is the same to the bit.
    assert all(map(torch.equal, gdn_gating(**mixed), gdn_gating(**given(dtype=dtype))))


@pytest.mark.parametrize(("name", "dtype", "other"), [p for p in PAIRS if p[2] not in ALLOWED[p[1]]], ids=str)
def test_parameters_of_a_third_dtype_are_refused(name: str, dtype: torch.dtype, other: torch.dtype) -> None:
    mixed = given(dtype=dtype)
    mixed[name] = mixed[name].to(other)
    with pytest.raises(TypeError, match=rf"{name} has dtype {str(other)[6:]}, expected float32"):
        gdn_gating(**mixed)


@pytest.mark.parametrize(("dtype", "other"), [p for p in product(FLOATS, FLOATS) if p[0] != p[1]], ids=str)
def test_activations_of_two_dtypes_are_refused(dtype: torch.dtype, other: torch.dtype) -> None:
    mixed = given(dtype=dtype) | {"b": given(dtype=other)["b"]}
    with pytest.raises(TypeError, match=rf"b has dtype {str(other)[6:]}, expected {str(dtype)[6:]}"):
        gdn_gating(**mixed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.zeros(3, 32)}, r"b has shape \[3, 32\], expected \[T, Hv\] = \[3, 33\]"),
        ({"A_log": torch.zeros(32)}, r"A_log has shape \[32\], expected \[Hv\] = \[33\]"),
        ({"dt_bias": torch.zeros(66)[::2]}, "dt_bias has strides .* expected contiguous"),
        ({"a": torch.zeros(33, 3).t()}, "a has stride 3 in its last dimension"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gdn_gating(**(given() | change))


def test_an_output_of_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="g has dtype bfloat16, expected float32"):
        gdn_gating_out(**given(), g=torch.empty(3, 33, dtype=torch.bfloat16), beta=torch.empty(3, 33))


def test_no_token_needs_no_launch() -> None:
    assert [tuple(x.shape) for x in gdn_gating(**given(0))] == [(0, 33), (0, 33)]
