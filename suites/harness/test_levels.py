"""Levels that tests show become records, and what is none is refused with its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.history.extras import devices, level_row
from minimax_m2.harness.history.files import read_file
from minimax_m2.harness.levels import level_records, read_levels

SHOWN = {"N1": {"routing": True, "swiglu": False}, "G0": {"routing": True}, "other": {"routing": True}}
OF = {"N1": "npu", "G0": "gpu"}


def written(folder: Path, name: str = "levels.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{record.json}\n" for record in level_records(SHOWN, OF)))
    return path


def test_the_newest_record_of_each_op_and_level_counts(tmp_path: Path) -> None:
    first, second = written(tmp_path), written(tmp_path, "again.jsonl")
    found = read_levels([second, first])
    assert [(one.device, one.level, one.op, one.passed) for one in found] == [
        ("gpu", "G0", "routing", True), ("npu", "N1", "routing", True), ("npu", "N1", "swiglu", False),
    ]  # fmt: skip
    assert {one.run for one in found} == {read_levels([second])[0].run}
    assert level_row(found[2])["tests"] == "FAILED"


def test_devices_say_how_many_ops_pass_a_level_and_who_would_know(tmp_path: Path) -> None:
    standing = {row["level"]: row["standing"] for row in devices(read_levels([written(tmp_path)]))}
    assert standing["N1"].startswith("1 of 2 ops pass")
    assert standing["N2"] == "no record here: pytest -m npu --levels FILE writes one"


@pytest.mark.parametrize("line", ["{]", "[]", '{"kind":"level"}'])
def test_what_is_no_record_of_a_level_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"levels\.jsonl, line 4"):
        read_levels([path])


def test_a_store_leaves_levels_out_and_counts_them(tmp_path: Path) -> None:
    assert read_file(written(tmp_path)).left_out == {"level": 3}


TESTS = """
import pytest

@pytest.mark.parametrize("what", ["N1-routing", "N1-swiglu"])
def test_lowers(what):
    assert what != "N1-swiglu"
"""


def test_a_session_writes_what_its_tests_showed(tmp_path: Path) -> None:
    (tmp_path / "test_levels_of_mine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--levels", "levels.jsonl", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    found = read_levels([tmp_path / "levels.jsonl"])
    assert [(one.device, one.level, one.op, one.passed) for one in found] == [
        ("npu", "N1", "routing", True), ("npu", "N1", "swiglu", False),
    ]  # fmt: skip
