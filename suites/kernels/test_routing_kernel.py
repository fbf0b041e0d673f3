"""What is special to the CPU routing kernel; its numbers are judged by the harness (suites/test_routing.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.routing import pack_routing, routing, routing_out, unpack_routing


def logits_and_bias(T: int, E: int) -> tuple[Tensor, Tensor]:
    """Distinct dyadic numbers in every row: rising or falling, and rotated by the token."""
    expert, token = torch.arange(E), torch.arange(T)[:, None]
    steps = (expert * (1 - 2 * (token % 2)) + 3 * token) % E
    return (steps - E / 2) / 32, ((expert * 5 + 3) % E - E / 2) / 64


def test_opcheck_accepts_the_three_ops() -> None:
    logits, bias = logits_and_bias(3, 16)
    weights, ids, packed = torch.empty(3, 2), torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32)
    ops = torch.ops.minimax_m2
    arguments = (logits, bias, 2, weights, ids, True, False, 1.0, 0.0, None)
    torch.library.opcheck(ops.routing.default, arguments)
    torch.library.opcheck(ops.pack_routing.default, (weights, ids, 0, packed))
    torch.library.opcheck(ops.unpack_routing.default, (packed, 0, weights, ids))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_routing_as_one_graph(dynamic: bool) -> None:
    logits, bias = logits_and_bias(5, 32)
    compiled = torch.compile(
        lambda x: routing(x * 2, bias, top_k=4), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for actual, expected in zip(compiled(logits), routing(logits * 2, bias, top_k=4), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize(("T", "E", "K"), [(1, 1, 1), (3, 5, 5), (2, 33, 32), (4, 256, 8), (2, 1024, 32)])
def test_ids_come_by_descending_choice(T: int, E: int, K: int, name: str) -> None:
    logits, bias = logits_and_bias(T, E)
    expected = torch.topk(logits.double().sigmoid() + bias, K, sorted=True).indices
    with isa.forced(name):
        _, ids = routing(logits, bias, top_k=K, indices_dtype=torch.int64)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("name", isa.available())
def test_ties_go_to_the_lower_id(name: str) -> None:
    with isa.forced(name):
        _, ids = routing(torch.zeros(2, 1000), None, top_k=32)
    assert torch.equal(ids, torch.arange(32, dtype=torch.int32).expand(2, 32))


@pytest.mark.parametrize("name", isa.available())
def test_experts_masked_by_minus_infinity_are_still_ranked(name: str) -> None:
    bias = torch.full((40,), -torch.inf)
    bias[[7, 39]] = 0.0
    with isa.forced(name):
        _, ids = routing(torch.zeros(1, 40), bias, top_k=4)
    assert ids.tolist() == [[7, 39, 0, 1]]


@pytest.mark.parametrize("name", isa.available())
def test_softmax_of_a_masked_row_scores_zero(name: str) -> None:
    with isa.forced(name):
        weights, ids = routing(torch.full((1, 20), -torch.inf), None, top_k=3, scoring="softmax", renormalize=False)
    assert weights.tolist() == [[0.0, 0.0, 0.0]]
    assert ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("name", isa.available())
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    logits, bias = logits_and_bias(100, 256)
    before = torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = routing(logits, bias, top_k=8)
        torch.set_num_threads(3)
        shared = routing(logits, bias, top_k=8)
        torch.set_num_threads(before)
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])


@pytest.mark.parametrize("name", isa.available())
def test_rows_may_be_strided_and_gaps_are_not_read(name: str) -> None:
    logits, bias = logits_and_bias(6, 33)
    wide = torch.full((6, 50), torch.nan)
    wide[:, :33] = logits
    with isa.forced(name):
        actual, expected = routing(wide[:, :33], bias, top_k=3), routing(logits, bias, top_k=3)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("name", isa.available())
def test_nan_raises_unless_its_row_is_padding(name: str) -> None:
    logits, bias = logits_and_bias(4, 16)
    logits[2, 5] = torch.nan
    with isa.forced(name):
        with pytest.raises(ValueError, match="logits row 2 has an expert whose score"):
            routing(logits, bias, top_k=2)
        weights, ids = routing(logits, bias, top_k=2, num_valid=torch.tensor(2, dtype=torch.int32))
    assert (ids[2:] == -1).all()
    assert (weights[2:] == 0).all()


def test_no_token_needs_no_launch() -> None:
    weights, ids = routing(torch.empty(0, 256), None, top_k=8, indices_dtype=torch.int64)
    assert weights.shape == ids.shape == (0, 8)
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": 17}, ValueError, "top_k=17 is outside 1..16"),
        ({"top_k": 0}, ValueError, "top_k=0 is outside 1..16"),
        ({"scoring": "tanh"}, ValueError, "scoring='tanh' is unknown; use one of sigmoid, softmax"),
        ({"indices_dtype": torch.int16}, TypeError, "indices_dtype=torch.int16, expected"),
        ({"bias": torch.zeros(15)}, ValueError, r"bias has shape \[15\], expected \[E\] = \[16\]"),
        ({"bias": torch.zeros(16, dtype=torch.bfloat16)}, TypeError, "bias has dtype bfloat16, expected float32"),
        ({"logits": torch.zeros(4, 16).double()}, TypeError, "logits has dtype float64, expected float32 or"),
        ({"logits": torch.zeros(16, 4).t()}, ValueError, "logits has stride 4 in its last dimension"),
        ({"logits": torch.zeros(4, 1025), "bias": None}, ValueError, "num_experts=1025 is outside 1..1024"),
        ({"num_valid": torch.tensor(1)}, TypeError, "num_valid has dtype int64, expected int32"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"logits": torch.zeros(4, 16), "bias": torch.zeros(16), "top_k": 2} | change
    with pytest.raises(error, match=message):
        routing(**arguments)  # type: ignore[arg-type]


def test_out_fills_the_given_tensors() -> None:
    logits, bias = logits_and_bias(3, 16)
    weights, ids = torch.empty(3, 4), torch.empty(3, 4, dtype=torch.int64)
    routing_out(logits, bias, weights, ids, top_k=4, indices_dtype=torch.int64)
    expected = routing(logits, bias, top_k=4, indices_dtype=torch.int64)
    assert torch.equal(weights, expected[0])
    assert torch.equal(ids, expected[1])


@pytest.mark.parametrize("name", isa.available())
def test_packing_keeps_bf16_weights_and_local_ids(name: str) -> None:
    weights = torch.tensor([[0.5, 1 + 2**-8, 1 + 3 * 2**-8], [0.25, 0.75, 1.0]])  # ties round to even
    ids = torch.tensor([[64, -1, 127], [63, 65, 66]])
    with isa.forced(name):
        packed = pack_routing(weights, ids, expert_start=64)
        back, local = unpack_routing(packed, expert_start=64)
    assert torch.equal(back, weights.bfloat16().float())
    assert local.tolist() == [[64, -1, 127], [-1, 65, 66]]
    assert torch.equal(packed < 0, local < 0)


def test_packing_refuses_ids_beyond_sixteen_bits() -> None:
    with pytest.raises(ValueError, match="ids element 1 is below -1 or more than 32767 above expert_start=0"):
        pack_routing(torch.ones(1, 2), torch.tensor([[32767, 32768]]))
