"""What is special to the CPU moe_align kernel; its numbers are judged by the harness (suites/test_moe_align.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.moe_align import moe_align, moe_align_out

IDS = torch.tensor([[0, 3], [3, 1], [-1, 3]])
GIVEN: dict[str, Any] = {"ids": IDS, "num_experts": 4, "block": 2}


def test_opcheck_accepts_moe_align() -> None:
    outputs = [torch.zeros(size, dtype=torch.int32) for size in (10, 5, 1, 4)]
    torch.library.opcheck(torch.ops.minimax_m2.moe_align.default, (IDS, 4, 2, None, *outputs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_moe_align_as_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(
        lambda ids: moe_align(ids + 0, num_experts=4, block=2), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for actual, expected in zip(compiled(IDS), moe_align(IDS, num_experts=4, block=2), strict=True):
        assert torch.equal(actual, expected)


def test_no_slot_needs_no_launch() -> None:
    empty = torch.empty(0, 8, dtype=torch.int64)
    sorted_slots, block_experts, num_padded, counts = moe_align(empty, num_experts=3, block=4)
    assert sorted_slots.numel() == block_experts.numel() == 0
    assert num_padded.tolist() == [0]
    assert counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize(
    ("ids", "expert_map", "message"),
    [
        ([[0, 4]], None, r"ids at \[0, 1\] is outside -1..3, num_experts=4"),
        ([[0, 1], [-2, 0]], None, r"ids at \[1, 0\] is outside -1..3"),
        ([[2**32, 0]], None, r"ids at \[0, 0\] is outside -1..3"),
        ([[2, 0]], [0, 1], r"ids at \[0, 0\] is outside -1..1 or expert_map sends it outside -1..3"),
        ([[0, 1]], [0, 4], r"ids at \[0, 1\] is outside -1..1 or expert_map sends it outside -1..3"),
    ],
)
def test_ids_out_of_range_raise(name: str, ids: list[list[int]], expert_map: list[int] | None, message: str) -> None:
    mapped = None if expert_map is None else torch.tensor(expert_map, dtype=torch.int32)
    with isa.forced(name), pytest.raises(ValueError, match=message):
        moe_align(torch.tensor(ids), num_experts=4, block=2, expert_map=mapped)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": IDS.to(torch.int16)}, TypeError, "ids has dtype int16, expected int32 or int64"),
        ({"ids": IDS.t()}, ValueError, r"ids has strides \[1, 2\], expected contiguous"),
        ({"block": 0}, ValueError, "block=0 is outside 1..2147483647"),
        ({"num_experts": 0}, ValueError, "num_experts=0 is outside 1..2147483647"),
        ({"block": 2**30, "num_experts": 4}, ValueError, "padded slots=.* is outside 0..2147483647"),
        ({"expert_map": torch.zeros(4)}, TypeError, "expert_map has dtype float32, expected int32"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        moe_align(**{**GIVEN, **change})


def test_out_refuses_outputs_of_another_shape() -> None:
    outputs = [torch.zeros(size, dtype=torch.int32) for size in (10, 5, 1, 5)]
    with pytest.raises(ValueError, match=r"counts has shape \[5\], expected \[length\] = \[4\]"):
        moe_align_out(IDS, *outputs, num_experts=4, block=2)
