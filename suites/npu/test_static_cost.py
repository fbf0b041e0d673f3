"""Static cost: what the planned program moves is counted with the launch's own sizes; the time is an estimate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minimax_m2.harness.npu.planned_scalars import events
from minimax_m2.harness.npu.reach import launches_on
from minimax_m2.harness.npu.static_cost import BANDWIDTH, StaticCost, cost_of, shares, unfused_cost
from minimax_m2.harness.npu.toolchain import CARDS, Compiler, compiler, reason_to_skip
from minimax_m2.harness.op import find_op
from minimax_m2.kernels.npu.launch import VECTOR_CORES
from minimax_m2.kernels.npu.qk_norm_rope import holds_rows, tiles_of

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = reason_to_skip("N2")
pytestmark = pytest.mark.npu
needs_compiler = pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")

CARD = "Ascend910_9391"


@pytest.fixture(scope="module")
def by() -> Iterator[Compiler]:
    with compiler() as one:
        yield one


@needs_compiler
def test_bytes_are_those_of_rows_and_of_a_weight_for_each_program(by: Compiler) -> None:
    op = find_op("rms_norm")
    case = op.shape("prefill")
    cost = cost_of(launches_on("rms_norm", [case]), by, CARD)
    row = 2 * case.number("H")
    assert cost.read == case.number("T") * row + VECTOR_CORES * row
    assert cost.written == case.number("T") * row
    assert cost.barriers > 0
    assert cost.vector_instructions >= 2 * case.number("T") * case.number("H") * 4 / 256


def ratio(stats: str, T: int, by: Compiler) -> float:
    case = find_op("qk_norm_rope").shape("prefill").but(T=T, weights="model", stats=stats)
    launches = launches_on("qk_norm_rope", [case])
    if stats == "given":
        launches += launches_on("qk_sum_squares", [find_op("qk_sum_squares").shape("prefill").but(T=T)])
    return cost_of(launches, by, CARD).bytes / unfused_cost(case, by, CARD).bytes


@needs_compiler
def test_the_fusion_moves_little_more_than_half_of_what_its_parts_move(by: Compiler) -> None:
    # 53.4 % of rows alone; below some hundred tokens the weights, which every program reads once, weigh more.
    assert ratio("none", 512, by) <= 0.55


@needs_compiler
def test_of_few_tokens_it_does_too_but_for_the_weights_of_each_program(by: Compiler) -> None:
    moved, once = shares(16, by, CARD)
    assert once <= 0.55 < moved


@needs_compiler
def test_two_halves_around_a_sum_read_rows_twice(by: Compiler) -> None:
    assert ratio("given", 64, by) > ratio("none", 64, by) + 0.2


def test_a_time_is_given_where_a_bandwidth_is_stated_only() -> None:
    cost = StaticCost(read=1_600_000, written=1_600_000)
    assert {card: cost.least_us(card) for card in CARDS} == {"Ascend910B3": None, CARD: 2.0}
    assert set(BANDWIDTH) < set(CARDS)


PROGRAM = """
#map = affine_map<()[s0] -> (s0 floordiv 2)>
  func.func @kernel(%arg0: memref<?xf32, #hivm.address_space<gm>>, %arg1: i32) attributes {} {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    scf.for %arg2 = %c0 to %arg1 step %c1  : i32 {
      %0 = affine.apply #map()[%arg2]
      %1 = memref.subview %arg0[0] [%0] [1] : memref<?xf32> to memref<?xf32, #hivm.address_space<gm>>
      func.call @load_gm_to_ubuf_1d_float(%1) : (memref<?xf32, #hivm.address_space<gm>>) -> ()
    }
    return
  }
"""


def test_loops_turn_as_often_as_the_launch_says() -> None:
    found = list(events(PROGRAM, [None, 5], 0))
    assert [event.name for event in found] == ["load_gm_to_ubuf_1d_float"] * 5
    assert [event.given[0].bytes for event in found] == [0, 0, 4, 4, 8]


def test_what_a_number_decides_is_counted_as_done() -> None:
    call = "func.call @load_gm_to_ubuf_1d_float(%1) : (memref<?xf32, #hivm.address_space<gm>>) -> ()"
    branch = f"%2 = memref.load %1[%c0] : memref<1xi1>\n      scf.if %2 {{\n        {call}\n      }}"
    names = [event.name for event in events(PROGRAM.replace(call, branch), [None, 2], 0)]
    assert names == ["memref.load", "load_gm_to_ubuf_1d_float"] * 2


@pytest.mark.parametrize(
    "line, replaced, message",
    [
        ("affine.apply #map()[%arg2]", "hivm.hir.unheard %arg2", "an instruction that is not known here: %0 = hivm"),
        ("affine.apply #map()[%arg2]", "arith.fptosi %arg2 : f32 to index", "%0 is not known, and this hangs on it"),
        ("return", "?? return", "a line of another release"),
    ],
)
def test_what_is_not_known_is_no_number(line: str, replaced: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(events(PROGRAM.replace(line, replaced), [None, 5], 0))


@pytest.mark.parametrize(
    "heads, tiles", [(1, (1, 1)), (2, (2, 1)), (3, (2, 1)), (6, (4, 2)), (48, (32, 16)), (63, (32, 32)), (64, (64, 1))]
)
def test_two_tiles_hold_the_heads(heads: int, tiles: tuple[int, int]) -> None:
    assert tiles_of(heads) == tiles


@pytest.mark.parametrize("heads, held", [(48, True), (64, False)])
def test_a_row_of_m2_is_held_whole(heads: int, held: bool) -> None:
    assert holds_rows(num_heads=heads, num_kv_heads=8, half=32, D=128) is held
