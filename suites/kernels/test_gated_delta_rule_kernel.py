"""What is special to the CPU kernel of the gated delta rule; its numbers are judged by the harness."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.gated_delta_rule import gated_delta_rule, gated_delta_rule_out
from minimax_m2.kernels.cpu.gdn_gating import gdn_gating
from minimax_m2.kernels.cpu.qkvzba_split import qkvzba_split, qkvzba_views

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
T, HK, HV, DK, DV = 11, 2, 4, 20, 33


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct numbers of both signs."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37 % 251 - 125) / 64).reshape(shape).to(dtype)


def given(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Sequences of 5, 0, 1 and 4 tokens, the last without a state, and a row of padding behind them."""
    return {
        "q": ramp(T, HK, DK, dtype=dtype),
        "k": ramp(T, HK, DK, dtype=dtype).flip(0),
        "v": ramp(T, HV, DV, dtype=dtype),
        "g": -ramp(T, HV).abs(),
        "beta": ramp(T, HV, dtype=dtype).abs() / 2,
        "state": ramp(6, HV, DK, DV),
        "state_index": torch.tensor([3, 5, 0, -1]),
        "query_start": torch.tensor([0, 5, 5, 6, 10]),
        "scale": 0.25,
    }


def test_opcheck_accepts_the_op() -> None:
    arguments = given()
    output = torch.empty(T, HV, DV)
    torch.library.opcheck(torch.ops.minimax_m2.gated_delta_rule.default, (*arguments.values(), True, output))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_the_recurrence_as_one_graph(dynamic: bool) -> None:
    ours, compiled = given(), given()
    expected = gated_delta_rule(**ours)
    actual = torch.compile(gated_delta_rule, fullgraph=True, dynamic=dynamic, backend="aot_eager")(**compiled)
    assert torch.equal(actual, expected)
    assert torch.equal(compiled["state"], ours["state"])


@pytest.mark.parametrize("name", isa.available())
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    before, alone, shared = torch.get_num_threads(), given(), given()
    with isa.forced(name):
        torch.set_num_threads(1)
        expected = gated_delta_rule(**alone)
        torch.set_num_threads(3)
        actual = gated_delta_rule(**shared)
        torch.set_num_threads(before)
    assert torch.equal(actual, expected)
    assert torch.equal(shared["state"], alone["state"])


@pytest.mark.parametrize("name", isa.available())
def test_a_sequence_does_not_see_its_batch(name: str) -> None:
    batch, alone = given(), given()
    alone.update({"state_index": torch.tensor([3]), "query_start": torch.tensor([0, 5])})
    with isa.forced(name):
        whole, own = gated_delta_rule(**batch), gated_delta_rule(**alone)
    assert torch.equal(own[:5], whole[:5])
    assert torch.equal(alone["state"][3], batch["state"][3])
    assert torch.equal(own[5:], torch.zeros(6, HV, DV))


@pytest.mark.parametrize("name", isa.available())
def test_a_prompt_cut_after_whole_chunks_ends_in_the_same_bits(name: str) -> None:
    whole, parts = given(), given()
    # Four tokens are taken at once, so a cut after eight of eleven moves no boundary.
    whole.update({"state_index": torch.tensor([2]), "query_start": torch.tensor([0, T])})
    parts.update({"state_index": torch.tensor([2]), "query_start": torch.tensor([0, 8])})
    with isa.forced(name):
        expected, first = gated_delta_rule(**whole), gated_delta_rule(**parts)
        parts.update(query_start=torch.tensor([8, T]))
        rest = gated_delta_rule(**parts)
    assert torch.equal(torch.cat([first[:8], rest[8:]]), expected)
    assert torch.equal(parts["state"], whole["state"])


@pytest.mark.parametrize("name", isa.available())
def test_views_of_the_projections_serve_as_well_as_their_copies(name: str) -> None:
    sizes: dict[str, Any] = {"num_k_heads": HK, "num_v_heads": HV, "head_k_dim": DK, "head_v_dim": DV}
    qkvz, ba = ramp(T, 2 * HK * DK + 2 * HV * DV), ramp(T, 2 * HV)
    results = []
    for split in (qkvzba_split, qkvzba_views):
        qkv, _, b, a = split(qkvz, ba, **sizes)
        q, k, v = qkv.split([HK * DK, HK * DK, HV * DV], -1)
        with isa.forced(name):
            g, beta = gdn_gating(ramp(HV), a, b, ramp(HV))
            arguments: dict[str, Any] = given() | {"q": q.unflatten(1, (HK, DK)), "k": k.unflatten(1, (HK, DK))}
            arguments |= {"v": v.unflatten(1, (HV, DV)), "g": g, "beta": beta}
            results.append((gated_delta_rule(**arguments), arguments["state"]))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", isa.available())
def test_slots_and_heads_of_the_state_may_lie_apart(name: str) -> None:
    dense, spaced = given(), given()
    wide = torch.full((6, HV + 1, 2 * DK, DV), torch.nan)
    spaced["state"] = wide[:, :HV, :DK]
    spaced["state"].copy_(dense["state"])
    with isa.forced(name):
        assert torch.equal(gated_delta_rule(**spaced), gated_delta_rule(**dense))
    assert torch.equal(spaced["state"], dense["state"])
    assert wide[:, HV:].isnan().all()
    assert wide[:, :, DK:].isnan().all()


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_index": torch.tensor([3, 6, 0, -1])}, r"state_index\[1\]=6 is outside the state's 6 slots; -1 pads"),
        ({"state_index": torch.tensor([3, 5, 3, -1])}, r"state_index\[2\]=3 is named twice"),
        ({"query_start": torch.tensor([0, 5, 4, 6, 10])}, "query_start falls in sequence 1"),
        ({"query_start": torch.tensor([0, 5, 5, 6, 12])}, r"query_start runs from 0 to 12, expected within 0\.\.11"),
    ],
)
def test_what_the_data_knows_raises_and_writes_nothing(name: str, change: dict[str, Any], message: str) -> None:
    arguments = given() | change
    with isa.forced(name), pytest.raises(ValueError, match=message):
        gated_delta_rule(**arguments)
    assert torch.equal(arguments["state"], given()["state"])


MIXED = [
    (name, dtype, other)
    for name, dtype, other in product(("k", "v", "beta", "g", "state"), FLOATS, FLOATS)
    if other != {"g": torch.float32, "state": torch.float32}.get(name, dtype)
    and (name, other) != ("beta", torch.float32)
]


@pytest.mark.parametrize(("name", "dtype", "other"), MIXED, ids=str)
def test_tensors_of_another_dtype_are_refused(name: str, dtype: torch.dtype, other: torch.dtype) -> None:
    arguments = given(dtype)
    arguments[name] = arguments[name].to(other)
    with pytest.raises(TypeError, match=rf"{name} has dtype {str(other)[6:]}, expected"):
        gated_delta_rule(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": ramp(T, HK, 19)}, ValueError, r"k has shape \[11, 2, 19\], expected \[T, Hk, Dk\] = \[11, 2, 20\]"),
        ({"v": ramp(T, 3, DV)}, ValueError, "q has 2 heads and v is .* key heads that divide the value heads"),
        ({"g": ramp(T, 3)}, ValueError, r"g has shape \[11, 3\], expected \[T, Hv\] = \[11, 4\]"),
        ({"beta": ramp(HV, T).t()}, ValueError, "beta has stride 11 in its last dimension"),
        ({"state": ramp(6, HV, DV, DK)}, ValueError, r"state has shape .* expected \[slots, Hv, Dk, Dv\]"),
        ({"state": ramp(6, HV, DV, DK).mT}, ValueError, "state has strides .* expected dense heads"),
        (
            {"state_index": torch.zeros(3).long()},
            ValueError,
            r"query_start has shape \[5\], expected \[B \+ 1\] = \[4\]",
        ),
        ({"query_start": torch.zeros(5)}, TypeError, "query_start has dtype float32, expected int32 or int64"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gated_delta_rule(**(given() | change))


def test_an_output_of_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="o has dtype bfloat16, expected float32"):
        gated_delta_rule_out(**given(), o=torch.empty(T, HV, DV, dtype=torch.bfloat16))
