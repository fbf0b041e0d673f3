"""The kernel of sm_90 that multiplies e4m3 rows: what it takes, how it is cut, its machine code, and what it gives."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures
from minimax_m2.harness.judge import expected, judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.kernels.gpu import fp8_linear, toolkit
from minimax_m2.kernels.gpu.experts import contract, paths
from minimax_m2.kernels.gpu.experts_products import by_products, rows_of_block
from minimax_m2.kernels.gpu.fp8_linear import by_product, product_cut
from minimax_m2.kernels.gpu.scaled_product import PAIRED, Tile, countable, halves, programs_of

M2: dict[str, Any] = {"hidden": 3072, "width": 1536, "block": (128, 128), "capability": 90, "compiler": "nvcc",
      "scaled": True, "aligned": True}  # fmt: skip
QKV: dict[str, Any] = {
    "channels": 3072,
    "columns": 8192,
    "block": (128, 128),
    "capability": 90,
    "compiler": "nvcc",
    "aligned": True,
}


@pytest.mark.parametrize(
    "change",
    [{"hidden": 3008}, {"width": 192}, {"block": (128, 64)}, {"capability": 89}, {"capability": 100},
     {"compiler": None}, {"scaled": False}, {"aligned": False}],
    ids=str,
)  # fmt: skip
def test_experts_take_it_where_it_can_run(change: dict[str, Any]) -> None:
    assert by_products(**M2)
    assert not by_products(**{**M2, **change})


@pytest.mark.parametrize(
    "change",
    [{"channels": 192}, {"columns": 129}, {"block": (64, 128)}, {"capability": 80}, {"capability": 120},
     {"compiler": None}, {"aligned": False}],
    ids=str,
)  # fmt: skip
def test_dense_layers_take_it_where_it_can_run(change: dict[str, Any]) -> None:
    assert by_product(**QKV)
    assert not by_product(**{**QKV, **change})


@pytest.mark.parametrize(
    ("slots", "first"),
    [
        (1, "products of 1"), (48, "products of 1"), (49, "products of 16"), (2048, "products of 16"),
        (2049, "products of 32"), (3072, "products of 32"), (3073, "products of 64"), (10240, "products of 64"),
        (10241, "products of 128"), (30720, "products of 128"), (30721, "products of 192"), (40960, "products of 192"),
        (40961, "products of 128"), (131072, "products of 128"),
    ],
)  # fmt: skip
def test_m2_experts_change_paths_with_their_slots(slots: int, first: str) -> None:
    assert paths(slots, 256, **M2)[0] == first


@pytest.mark.parametrize(
    ("tokens", "first"),
    [(1, "products of 16 x 64 in 2"), (2, "products of 16 x 64 in 1"), (17, "products of 64 x 64 in 1"),
     (65, "products of 128 x 64 in 1"), (129, "products of 128 x 128 in 1"), (257, "products of 128 x 256 in 1")],
)  # fmt: skip
def test_dense_layers_change_paths_with_their_tokens(tokens: int, first: str) -> None:
    assert fp8_linear.paths(tokens, 8192, 3072, (128, 128), capability=90, compiler="nvcc", aligned=True)[0] == first


def test_without_sm_90_or_its_compiler_the_other_paths_remain() -> None:
    assert paths(8, 256, **{**M2, "compiler": None}) == ("rows", "tiles")
    assert paths(65, 256, **{**M2, "capability": 80}) == ("tiles",)
    assert fp8_linear.paths(1, 8192, 3072, (128, 128), capability=90, compiler=None, aligned=True) == ("row", "tiles")
    assert fp8_linear.paths(2, 8192, 3072, (128, 128), capability=100, compiler="nvcc", aligned=True) == ("tiles",)


@pytest.mark.parametrize(
    ("slots", "experts", "rows"),
    [
        (1, 256, 1),
        (48, 256, 1),
        (49, 256, 16),
        (2048, 256, 16),
        (2049, 256, 32),
        (3073, 256, 64),
        (10241, 256, 128),
        (30721, 256, 192),
        (40961, 256, 128),
        (65, 1, 128),
        (121, 1, 192),
    ],
)
def test_blocks_grow_with_the_slots_of_an_expert(slots: int, experts: int, rows: int) -> None:
    assert rows_of_block(slots, experts) == rows


@pytest.mark.parametrize(
    ("tokens", "columns", "groups", "cut"),
    [
        (1536, 2048, 24, ((128, 256), 1)), (1537, 4096, 24, ((192, 256), 1)),
        (4096, 8192, 24, ((192, 256), 1)), (4096, 3072, 48, ((192, 256), 1)), (2048, 3072, 48, ((192, 256), 1)),
        (1024, 3072, 48, ((128, 256), 1)), (1023, 8192, 24, ((128, 256), 1)), (512, 3072, 48, ((128, 128), 1)),
        (256, 8192, 24, ((128, 128), 1)), (256, 3072, 48, ((128, 96), 2)), (256, 3072, 5, ((128, 64), 1)),
        (128, 8192, 24, ((128, 64), 1)), (128, 3072, 48, ((128, 64), 2)), (65, 1024, 24, ((128, 64), 6)),
        (64, 8192, 24, ((64, 64), 1)), (64, 3072, 48, ((64, 64), 2)),
        (33, 4096, 24, ((64, 64), 1)), (32, 4096, 24, ((64, 64), 1)), (32, 4095, 24, ((32, 64), 3)),
        (17, 8192, 24, ((64, 64), 1)), (17, 3072, 48, ((32, 64), 4)), (16, 8192, 24, ((16, 64), 1)),
        (2, 1024, 24, ((16, 64), 12)), (2, 128, 1, ((16, 64), 1)),
        # A single token: 128, 64, 48 and 16 tiles, and more than clusters of two.
        (1, 8192, 24, ((16, 64), 2)), (1, 4096, 24, ((16, 64), 3)), (1, 3072, 48, ((16, 64), 4)),
        (1, 1024, 24, ((16, 64), 8)), (1, 8512, 24, ((16, 64), 1)), (1, 128, 1, ((16, 64), 1)),
    ],
)  # fmt: skip
def test_tiles_are_as_wide_as_leaves_all_busy(tokens: int, columns: int, groups: int, cut: tuple[Any, int]) -> None:
    assert product_cut(tokens, columns, groups) == cut
    assert groups % cut[1] == 0


@pytest.mark.parametrize(
    ("tile", "parts", "programs", "joined"),
    [(Tile(64, 64), 2, 96, True), (Tile(128, 96), 2, 132, True), (Tile(128, 96), 2, 134, False),
     (Tile(128, 64), 4, 96, False), (Tile(128, 64), 1, 96, False), (Tile(32, 64), 2, 96, False)],
)  # fmt: skip
def test_two_programs_add_up_a_tile_where_all_run_at_once(tile: Tile, parts: int, programs: int, joined: bool) -> None:
    assert halves(tile, parts, programs, places=132) == joined


@pytest.mark.parametrize(
    ("tile", "tiles", "programs"),
    [(Tile(192, 256), 1, 2), (Tile(192, 256), 66, 132), (Tile(192, 256), 900, 132), (Tile(192, 128), 7, 14),
     (Tile(128, 256), 67, 67), (Tile(128, 128), 200, 133)],
)  # fmt: skip
def test_pairs_of_programs_are_whole(tile: Tile, tiles: int, programs: int) -> None:
    assert programs_of(tile, tiles, places=133) == programs


@pytest.mark.parametrize("tokens", [100, 256, 257, 4096])
def test_a_pair_is_offered_whole_sums_only(tokens: int) -> None:
    cuts = fp8_linear.products_of(tokens, 8192, 24).values()

    assert [parts for tile, parts in cuts if tile in PAIRED] == [1]
    assert any(parts > 1 for tile, parts in cuts if tile not in PAIRED) == (tokens <= 256)


@pytest.mark.parametrize(("apart", "expected"), [(24, True), (1 << 30, False), (1 << 40, False)])
def test_31_bits_count_scales(apart: int, expected: bool) -> None:
    few, far = torch.empty(3, 24, device="meta"), torch.empty_strided((3, 24), (apart, 1), device="meta")

    assert countable(few, far) is expected


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Resource usage and disassembly of every kernel of the unit, by name."""
    if toolkit.compiler() is None:
        pytest.skip("nvcc is not here")
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    library = tmp_path_factory.mktemp("unit") / "scaled_product.so"
    done = subprocess.run(toolkit.command("scaled_product", "90a", library), capture_output=True, text=True, check=True)
    # The compiler says so where it would make products wait for each other.
    assert "serialized" not in done.stderr
    usage, code = (
        subprocess.run([tools / tool, option, library], capture_output=True, text=True, check=True).stdout
        for tool, option in (("cuobjdump", "--dump-resource-usage"), ("cuobjdump", "--dump-sass"))
    )
    return {
        name: (line, body)
        for name, line in re.findall(r"Function (\S+?):\n\s*(.*)", usage)
        for body in re.findall(rf"Function : {re.escape(name)}\n(.*?)(?=Function :|\Z)", code, re.DOTALL)
    }


@pytest.mark.gpu
@pytest.mark.nightly
def test_machine_code_has_tensor_cores_and_the_copy_engine_and_spills_nothing(
    machine_code: dict[str, tuple[str, str]],
) -> None:
    assert len(machine_code) == 18
    for name, (usage, code) in machine_code.items():
        assert "STACK:0" in usage, f"{name} keeps registers in memory: {usage}"
        assert "QGMMA" in code, f"{name} multiplies without the tensor cores of sm_90"
        assert "UTMALDG" in code, f"{name} fetches weights without the copy engine"


@pytest.mark.gpu
@pytest.mark.nightly
def test_pairs_fetch_for_both_and_wait_for_no_memory_at_a_step(machine_code: dict[str, tuple[str, str]]) -> None:
    pairs = [code for _, code in machine_code.values() if "UTMALDG.2D.MULTICAST" in code]

    assert len(pairs) == 3
    for code in pairs:
        # Of barriers, of the cluster's beginning and of its end.
        assert code.count("MEMBAR.ALL.GPU") == 2
        assert "SYNCS.ARRIVE.TRANS64.RED" in code


def _cases() -> Iterator[Case]:
    """Sizes on both sides of every change of path, loads that are skewed or empty, all kinds of ids, all dtypes."""
    experts, dense = find_op("experts"), find_op("fp8_linear")
    small: dict[str, Field] = {"H": 256, "I": 128, "E": 16, "K": 2, "active": 32, "quant": "weights"}
    for T in (16, 32, 33, 64, 65, 96, 97, 160, 161, 320, 321, 353):
        yield experts.case(**small, T=T, seed=T)
    for load in ("hot", "same", "holes", "none"):
        for T, ids, mapped in ((20, "int32", 1), (50, "int64", 0), (100, "packed", 1), (300, "int32", 0),
                               (400, "packed", 0), (400, "int64", 1)):  # fmt: skip
            yield experts.case(**small, T=T, load=load, ids=ids, map=mapped, seed=T)
    # Blocks of 192 slots: one, two, and parts of them.
    few: dict[str, Field] = {**small, "E": 4, "active": 4}
    for T in (240, 241, 300, 320, 321):
        yield experts.case(**few, T=T, seed=T)
    for load, ids, mapped in (("hot", "int32", 1), ("same", "packed", 0), ("holes", "int64", 1), ("none", "int32", 0)):
        yield experts.case(**few, T=300, load=load, ids=ids, map=mapped)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield experts.case(**{**few, "I": 384, "H": 640}, T=300, regime=regime)
        for T in (30, 70, 400):
            yield experts.case(**{**small, "I": 256, "H": 384}, T=T, regime=regime)
    for dtype, out in (("float16", "same"), ("float32", "same"), ("bfloat16", "float32")):
        for T in (24, 100, 400):
            yield experts.case(**{**small, "quant": "both"}, T=T, dtype=dtype, out=out, gap=16)
        for T in (5, 100, 400):
            yield dense.case(T=T, N=272, H=384, x="e4m3", dtype=dtype, out=out, gap=16)
    for T in (16, 17, 32, 33, 64, 65, 121, 300):
        yield dense.case(T=T, N=1024, H=3072, seed=T)
    # Tiles of 64, 128 and 256 columns, of 96 in two parts, of 192 rows; whole and with rows or columns left over.
    for T, N, H in ((700, 2048, 384), (1600, 2048, 384), (64, 3072, 512), (100, 3072, 512), (127, 2976, 256),
                    (256, 3072, 512), (200, 2976, 256), (250, 8192, 384), (129, 8144, 256), (2100, 4096, 256),
                    (2050, 4112, 256), (1921, 4096, 256), (1985, 4096, 256), (2017, 4096, 256),
                    (2112, 4096, 256)):  # fmt: skip
        yield dense.case(T=T, N=N, H=H, seed=T)
        yield dense.case(T=T, N=N, H=H, dtype="float16", out="float32", seed=T)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield dense.case(T=130, N=128, H=128, regime=regime)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.op}-{case.id}") for case in _cases() if case.number("T") <= 33]
)
def test_cases_of_few_tokens_show_more_than_their_own_noise(case: Case) -> None:
    """What tensor cores leave out of a sum hides a wrong gain where there are few sums: no GPU is needed to see it."""
    declared = contract(case) if case.op == "experts" else fp8_linear.contract

    assert expected(find_op(case.op), case, declared)[1] == ()


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"G2-{case.op}-{case.id}") for case in _cases()])
def test_outputs_are_right_at_every_threshold(case: Case) -> None:
    verdict = judge(case, ours("gpu"))

    assert verdict.passed, verdict.explain()


SMALL_EXPERTS: dict[str, Field] = {"H": 512, "I": 256, "E": 4, "K": 2, "quant": "weights"}


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize(
    ("op", "fields", "tokens"),
    [("experts", SMALL_EXPERTS, (1, 8, 16, 17, 32, 33, 40, 41, 88, 130, 260)),
     ("fp8_linear", {"N": 1024, "H": 512}, (1, 2, 16, 17, 32, 33, 64, 65, 300, 1600)),
     ("fp8_linear", {"N": 4096, "H": 512}, (1000, 1100))],
    ids=["G2-experts", "G2-fp8_linear", "G2-fp8_linear pairs"],
)  # fmt: skip
def test_captured_changed_and_compiled_calls_agree(op: str, fields: dict[str, Field], tokens: tuple[int, ...]) -> None:
    cases = [find_op(op).case(**fields, T=T) for T in tokens]

    assert list(capture_failures(find_op(op), cases, ours("gpu"), backend="aot_eager")) == []
