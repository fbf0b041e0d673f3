"""A run makes the first failure of each cell small and keeps it; later runs judge it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness.coverage import coverage
from minimax_m2.harness.first_failures import first_failures, known_failures, made_small
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.record import Record
from minimax_m2.harness.table import coverage_line

LAST_COLUMN = """
import torch
def rms_norm(x, weight, *, eps):
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
    y[:, -1] = 0
    return y
"""
LARGE = [find_op("rms_norm").case(T=T, H=65, gap=3, regime="heavy", seed=9) for T in (17, 33)]


@pytest.fixture
def mine(tmp_path: Path) -> Provider:
    (tmp_path / "mine.py").write_text(LAST_COLUMN)
    return from_file(tmp_path / "mine.py")


def failed(mine: Provider) -> list[Record]:
    return [Record.of(judge(case, mine), run="now") for case in LARGE]


def test_the_first_failure_of_a_cell_becomes_a_script_and_a_case_that_later_runs_meet(
    tmp_path: Path, mine: Provider
) -> None:
    (told,) = made_small(failed(mine), [mine], tmp_path, seconds=10)
    (case,) = (case for case in known_failures(tmp_path, print)["rms_norm"] if (tmp_path / name_of(case.id)).exists())
    assert told == f"rms_norm/cpu/mine: wrote {tmp_path / name_of(case.id)}"
    assert case.number("T") == 1
    assert not judge(case, mine).passed


def name_of(case_id: str) -> str:
    return f"repro_{case_id}.py"


def test_where_no_time_is_left_the_command_is_told(tmp_path: Path, mine: Provider) -> None:
    (told,) = made_small(failed(mine), [mine], tmp_path, seconds=0.5)
    assert f"m2check repro {LARGE[0].id} --provider {mine.source} --write {tmp_path}" in told
    assert not list(tmp_path.glob("repro_*"))


def test_what_passed_is_no_failure(mine: Provider) -> None:
    assert [record.case_id for record in first_failures(failed(mine))] == [LARGE[0].id]
    assert first_failures([Record.of(judge(find_op("rms_norm").case(T=0), mine), run="now")]) == []


def test_a_kept_case_that_its_op_no_longer_builds_is_told_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "rms_norm-00000000.json").write_text("{}")
    said: list[str] = []
    assert known_failures(tmp_path, said.append) == known_failures(tmp_path / "nowhere", said.append)
    assert len(said) == 1
    assert "rms_norm-00000000.json" in said[0]


def test_the_table_says_how_many_pairs_the_cases_held() -> None:
    linear, rope = find_op("linear"), find_op("rope")
    found = [coverage(linear, [linear.case()]), coverage(rope, [rope.case()])]
    assert f"{sum(c.met for c in found)} of {sum(c.declared for c in found)} pairs" in coverage_line(found)
    assert f"fewest of {min(found, key=lambda c: c.share).op} " in coverage_line(found)
    assert coverage_line([]) == "no op has two factors"
