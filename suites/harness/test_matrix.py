"""Cells that must execute: read from files, compared with what ran, and never lost without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimax_m2.harness.matrix import Cell, cells, due, expected_dir, lost, machine_kind, must_execute
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.providers.ours import stem_of, stems
from minimax_m2.harness.providers.plain import plain

AVX2 = 'ours = ["portable", "avx2"]\n'


@pytest.mark.parametrize(
    "square",
    [
        Cell("routing", "ours", "cpu", "avx2"),
        Cell("linear", "plain", "cpu"),
        Cell("linear", "my-own-cpu", "cpu"),
        Cell("linear", "my-own-kernels", "gpu", "sm_90"),
    ],
    ids=lambda square: square.id,
)
def test_a_cell_reads_back_from_its_id(square: Cell) -> None:
    assert Cell.parse(square.id) == square


def test_cells_are_what_providers_offer_in_every_variant() -> None:
    provider = replace(plain(), variants=("a", "b"), functions=lambda name: print if name == "linear" else None)
    assert [cell.id for cell in cells([provider])] == ["linear-plain-cpu-a", "linear-plain-cpu-b"]
    assert cells([provider], ["routing"]) == []


def test_a_variant_that_an_op_lacks_is_no_cell() -> None:
    provider = replace(plain(), variants=("a", "b"), lacks=lambda op, variant: (op, variant) == ("linear", "b"))
    assert [cell.id for cell in cells([provider], ["linear", "rope"])] == [
        "linear-plain-cpu-a", "rope-plain-cpu-a", "rope-plain-cpu-b"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[cpu.avx512_bf16]\nours = ["avx2"]\n', {"avx2"}),
        ('[cpu.avx512_bf16]\nours = ["avx2"]\n[cpu.amx]\nours = ["avx2", "amx"]\n', {"avx2", "amx"}),
    ],
)
def test_a_machine_with_tiles_is_of_the_kind_below_where_a_file_names_none(
    text: str, expected: set[str], tmp_path: Path
) -> None:
    (tmp_path / "linear.toml").write_text(text)
    assert {cell.variant for cell in must_execute(tmp_path, "cpu", "amx")} == expected


def test_an_expected_cell_that_did_not_run_is_lost(tmp_path: Path) -> None:
    (tmp_path / "linear.toml").write_text("[cpu.avx2]\n" + AVX2)
    needed = must_execute(tmp_path, "cpu", "avx2")
    ran = {Cell("linear", "ours", "cpu", "portable"), Cell("linear", "plain", "cpu")}
    assert lost(needed, ran) == [Cell("linear", "ours", "cpu", "avx2")]
    assert lost(needed, ran | needed) == []


def test_a_file_of_many_ops_expects_each(tmp_path: Path) -> None:
    (tmp_path / "qk_norm_rope.toml").write_text("[cpu.avx2]\n" + AVX2)
    assert {cell.op for cell in must_execute(tmp_path, "cpu", "avx2")} == {"qk_sum_squares", "qk_norm_rope"}


def test_a_declared_absence_expects_nothing(tmp_path: Path) -> None:
    (tmp_path / "linear.toml").write_text('[absent]\ncpu = "not built"\n')
    assert must_execute(tmp_path, "cpu", "avx2") == set()


@pytest.mark.parametrize(
    "file, text, complaint",
    [
        ("gait.toml", "[cpu.avx2]\n" + AVX2, r"gait\.toml names no op"),
        ("linear.toml", "[cpu.avx512]\n" + AVX2, r"no table \[cpu\.avx2\]"),
    ],
)
def test_a_file_that_says_nothing_useful_is_refused(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        must_execute(tmp_path, "cpu", "avx2")


@pytest.mark.parametrize(
    ("capability", "kind"), [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((12, 1), "sm_120")]
)
def test_a_gpu_is_of_the_newest_architecture_that_it_runs(
    capability: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert machine_kind("gpu") == kind


def test_a_run_that_reached_the_gpu_must_run_every_cell_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = expected_dir()
    assert folder is not None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    one = {Cell("linear", "ours", "gpu")}

    gone = {cell.op for cell in lost(due(folder, one), one) if cell.device == "gpu"}

    assert gone == {name for name in all_ops() if stem_of(name) in stems("gpu")} - {"linear"}
    assert not {cell for cell in due(folder, set()) if cell.device == "gpu"}


def test_a_run_that_reached_an_npu_must_run_what_is_built_for_it() -> None:
    folder = expected_dir()
    assert folder is not None
    one = {Cell("qk_sum_squares", "ours", "npu")}

    gone = {cell.op for cell in lost(due(folder, one), one) if cell.device == "npu"}

    assert gone == {name for name in all_ops() if stem_of(name) in stems("npu")} - {"qk_sum_squares"}
