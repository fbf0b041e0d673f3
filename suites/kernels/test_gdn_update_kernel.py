"""What is special to the CPU kernel of the update with its gates; its numbers are judged by the harness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.gated_delta_rule import gated_delta_rule
from minimax_m2.kernels.cpu.gdn_gating import gdn_gating
from minimax_m2.kernels.cpu.gdn_update import gdn_update, gdn_update_out

T, HK, HV, DK, DV = 11, 2, 4, 20, 33
GATES = ("A_log", "a", "b", "dt_bias")


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct numbers of both signs."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37 % 251 - 125) / 64).reshape(shape).to(dtype)


def given(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Sequences of 5, 0, 1 and 4 tokens, the last without a state, and a row of padding behind them."""
    gates = ramp(T, 2 * HV + 3, dtype=dtype)
    return {
        "q": ramp(T, HK, DK, dtype=dtype),
        "k": ramp(T, HK, DK, dtype=dtype).flip(0),
        "v": ramp(T, HV, DV, dtype=dtype),
        "A_log": ramp(HV),
        "a": gates[:, 3 : HV + 3],
        "b": gates[:, HV + 3 :],
        "dt_bias": ramp(HV, dtype=dtype),
        "state": ramp(6, HV, DK, DV),
        "state_index": torch.tensor([3, 5, 0, -1]),
        "query_start": torch.tensor([0, 5, 5, 6, 10]),
        "scale": 0.25,
    }


def test_opcheck_accepts_the_op() -> None:
    output = torch.empty(T, HV, DV)
    torch.library.opcheck(torch.ops.minimax_m2.gdn_update.default, (*given().values(), True, output))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_the_update_as_one_graph(dynamic: bool) -> None:
    ours, compiled = given(), given()
    expected = gdn_update(**ours)
    actual = torch.compile(gdn_update, fullgraph=True, dynamic=dynamic, backend="aot_eager")(**compiled)
    assert torch.equal(actual, expected)
    assert torch.equal(compiled["state"], ours["state"])


@pytest.mark.parametrize("name", isa.available())
def test_in_float32_the_parts_one_after_the_other_give_the_same_bits(name: str) -> None:
    fused, parts = given(), given()
    with isa.forced(name):
        g, beta = gdn_gating(*(parts.pop(gate) for gate in GATES))
        expected, actual = gated_delta_rule(**parts, g=g, beta=beta), gdn_update(**fused)
    assert torch.equal(actual, expected)
    assert torch.equal(fused["state"], parts["state"])


@pytest.mark.parametrize("name", isa.available())
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    before, alone, shared = torch.get_num_threads(), given(), given()
    with isa.forced(name):
        torch.set_num_threads(1)
        expected = gdn_update(**alone)
        torch.set_num_threads(3)
        actual = gdn_update(**shared)
        torch.set_num_threads(before)
    assert torch.equal(actual, expected)
    assert torch.equal(shared["state"], alone["state"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_index": torch.tensor([3, 6, 0, -1])}, r"state_index\[1\]=6 is outside the state's 6 slots; -1 pads"),
        ({"query_start": torch.tensor([0, 5, 4, 6, 10])}, "query_start falls in sequence 1"),
    ],
)
def test_what_the_data_knows_raises_and_writes_nothing(change: dict[str, Any], message: str) -> None:
    arguments = given() | change
    with pytest.raises(ValueError, match=message):
        gdn_update(**arguments)
    assert torch.equal(arguments["state"], given()["state"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": ramp(T, 3)}, ValueError, r"a has shape \[11, 3\], expected \[T, Hv\] = \[11, 4\]"),
        ({"b": ramp(T, 3)}, ValueError, r"b has shape \[11, 3\], expected \[T, Hv\] = \[11, 4\]"),
        ({"a": ramp(T, HV, dtype=torch.bfloat16)}, TypeError, "a has dtype bfloat16, expected float32"),
        ({"A_log": ramp(3)}, ValueError, r"A_log has shape \[3\], expected \[Hv\] = \[4\]"),
        ({"dt_bias": ramp(HV).half()}, TypeError, "dt_bias has dtype float16, expected float32"),
        ({"k": ramp(T, HK, 19)}, ValueError, r"k has shape \[11, 2, 19\], expected \[T, Hk, Dk\] = \[11, 2, 20\]"),
        ({"state": ramp(6, HV, DV, DK)}, ValueError, r"state has shape .* expected \[slots, Hv, Dk, Dv\]"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gdn_update(**(given() | change))


def test_an_output_of_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="o has dtype bfloat16, expected float32"):
        gdn_update_out(**given(), o=torch.empty(T, HV, DV, dtype=torch.bfloat16))
