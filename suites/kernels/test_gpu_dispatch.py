"""Which GPU code runs at which shape: every choice is a pure function, and its truth table stands here."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.kernels.gpu.dense_tile import by_library, parts_of_tiles, tiling
from minimax_m2.kernels.gpu.experts import by_rows
from minimax_m2.kernels.gpu.launch import AFTER_WAITING, AT_ONCE, NEVER, ROOM, chained, converts_e4m3, overlaps
from minimax_m2.kernels.gpu.parts import parts_of
from minimax_m2.kernels.gpu.router_gemm import by_multiply_adds, on_tensor_cores
from minimax_m2.kernels.gpu.row_products import fits
from minimax_m2.kernels.gpu.scaled_rows import fits as rows_fit
from minimax_m2.kernels.gpu.scaled_rows import steps_of
from minimax_m2.kernels.gpu.swiglu import is_quick
from minimax_m2.kernels.gpu.swiglu_quant import group_tiles


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        pytest.param(converts_e4m3(80), False, id="sm_80 converts e4m3 by integers"),
        pytest.param(converts_e4m3(89), True, id="sm_89 converts e4m3"),
        pytest.param(overlaps(89), False, id="sm_89 launches one kernel after the other"),
        pytest.param(overlaps(90), True, id="sm_90 lets launches overlap"),
        pytest.param(fits(1, 8192, torch.bfloat16), True, id="a dense row by multiply-adds"),
        pytest.param(fits(2, 3072, torch.bfloat16), False, id="two dense rows in tiles"),
        pytest.param(fits(2, 8192, torch.float32), True, id="two dense rows of float32 by multiply-adds"),
        pytest.param(fits(3, 3072, torch.float32), False, id="three dense rows of float32 in tiles"),
        pytest.param(fits(1, 8193, torch.bfloat16), False, id="a dense row too long for registers"),
        pytest.param(by_library(32, torch.bfloat16), False, id="32 dense rows by our tiles"),
        pytest.param(by_library(33, torch.bfloat16), True, id="33 dense rows by cuBLAS"),
        pytest.param(by_library(4096, torch.float32), False, id="float32 never by cuBLAS"),
        pytest.param(by_multiply_adds(8, 3072), True, id="8 tokens of the router by multiply-adds"),
        pytest.param(by_multiply_adds(9, 3072), False, id="9 tokens of the router in tiles"),
        pytest.param(on_tensor_cores(8, torch.bfloat16), False, id="8 tokens of the router without tensor cores"),
        pytest.param(on_tensor_cores(9, torch.bfloat16), True, id="9 tokens of the router on tensor cores"),
        pytest.param(on_tensor_cores(4096, torch.float16), False, id="float16 of the router without tensor cores"),
        pytest.param(by_rows(32, 3072, 1536, 128, scaled=True), True, id="M2's experts at T=4 by rows"),
        pytest.param(by_rows(33, 3072, 1536, 128, scaled=True), False, id="M2's experts above in tiles"),
        pytest.param(by_rows(8, 3072, 1536, 128, scaled=False), False, id="bf16 experts in tiles"),
        pytest.param(by_rows(8, 16384, 1536, 128, scaled=True), False, id="rows too long for registers in tiles"),
        pytest.param(is_quick(torch.bfloat16), True, id="SwiGLU of 16 bits by the hardware's power"),
        pytest.param(is_quick(torch.float32), False, id="SwiGLU of float32 below one unit"),
        pytest.param(rows_fit(3072, 2048), False, id="a group wider than a step"),
    ],
)
def test_the_truth_table_holds(chosen: bool, expected: bool) -> None:
    assert chosen is expected


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [(3072, 128, (8, 128, 3)), (1536, 128, (4, 128, 3)), (192, 128, (2, 128, 1)), (7, 3, (4, 4, 1))],
)  # fmt: skip
def test_steps_cover_a_row(size: int, width: int, expected: tuple[int, int, int]) -> None:
    groups, block, steps = steps_of(size, width)

    assert (groups, block, steps) == expected
    assert groups * steps * width >= size


@pytest.mark.parametrize(
    ("tokens", "group", "groups", "expected"),
    [(1, 128, 12, (3, 4, 128, 4)), (1023, 128, 12, (3, 4, 128, 4)), (1024, 128, 12, (3, 4, 128, 1)),
     (1, 2048, 1, (1, 1, 2048, 16)), (1024, 2048, 1, (1, 1, 2048, 4)), (1, 7, 2, (1, 2, 8, 1))],
)  # fmt: skip
def test_groups_of_swiglu_are_dealt_to_programs(
    tokens: int, group: int, groups: int, expected: tuple[int, ...]
) -> None:
    programs, tile = group_tiles(tokens, group, groups)

    assert (programs, *tile.values()) == expected


@pytest.mark.parametrize(
    ("tokens", "columns", "dtype", "capability", "expected"),
    [
        (16, 8192, torch.bfloat16, 90, (32, 4, 1)), (32, 8192, torch.float16, 90, (32, 4, 1)),
        (33, 8192, torch.bfloat16, 90, (64, 4, 2)), (16, 3072, torch.bfloat16, 90, (64, 6, 2)),
        (16, 3072, torch.bfloat16, 120, (64, 4, 5)), (2, 25008, torch.bfloat16, 90, (64, 4, 1)),
        (16, 8192, torch.float32, 90, (64, 3, 2)), (300, 8192, torch.bfloat16, 90, (256, 3, 2)),
    ],
)  # fmt: skip
def test_few_dense_rows_take_tiles_that_fill_the_machine(
    tokens: int, columns: int, dtype: torch.dtype, capability: int, expected: tuple[int, int, int]
) -> None:
    cut = tiling(tokens, columns, dtype, capability)

    assert (cut.columns, cut.stages, parts_of_tiles(cut, tokens, columns, 3072)) == expected


def test_a_sum_is_cut_where_tiles_are_few_and_by_shapes_alone() -> None:
    assert [parts_of(tiles, 24) for tiles in (1, 32, 128, 256, 10_000)] == [12, 8, 2, 1, 1]
    assert parts_of(1, 1) == 1
    # 12 steps in 5 parts would be 3 each, and the fifth would read behind the row.
    assert parts_of(48, 12) == 4
    for tiles in (1, 7, 48, 64, 100):
        for steps in range(1, 100):
            parts = parts_of(tiles, steps)
            assert (parts - 1) * -(-steps // parts) < steps, (tiles, steps)


@pytest.mark.parametrize(
    ("capability", "warps", "tokens", "early", "followed"),
    [(89, 1, 1, False, NEVER), (90, 1, 0, True, AFTER_WAITING), (90, ROOM, 8, True, AFTER_WAITING),
     (90, ROOM, 1, True, AT_ONCE), (90, ROOM + 1, 1, True, NEVER)],
)  # fmt: skip
def test_a_launch_of_few_warps_lets_the_next_one_begin(
    capability: int, warps: int, tokens: int, early: bool, followed: int
) -> None:
    expected = {"EARLY": early, "FOLLOWED": followed, "launch_pdl": early}
    assert chained(capability, warps, tokens=tokens) == expected
