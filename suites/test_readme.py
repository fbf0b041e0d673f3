"""The README claims what a record proves, and documents the commands there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_group

from minimax_m2.harness.cli import app
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.proven import proven_table
from minimax_m2.harness.record import Record, read

ROOT = Path(__file__).resolve().parents[1]
# Qwen3.5's, which no layer of MiniMax-M2 has.
QWEN = {"gated_delta_rule", "gdn_gating", "gdn_update", "qkvzba_split"}
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def records() -> list[Record]:
    (named,) = re.findall(r"^\*measured\* \((ci/results/[^ ,)]+)", README, re.MULTILINE)
    return read(ROOT / named)


def test_the_table_of_what_is_proven_is_that_of_the_record(records: list[Record]) -> None:
    assert proven_table(records) in README


def test_a_record_of_a_failure_would_change_the_table(records: list[Record]) -> None:
    wrong = Record.from_json(records[0].json.replace('"outcome":"pass"', '"outcome":"wrong"', 1))
    assert proven_table([wrong, *records[1:]]) not in README


@pytest.mark.parametrize(
    "named, said",
    [
        ("h100-*", "{ops} ops on one H100, judged in {cases} cases, none wrong"),
        ("h200-20261122", "every op of the model on one H200, judged in {cases} cases"),
    ],
)
def test_what_is_said_of_gpus_is_counted_from_their_records(named: str, said: str) -> None:
    lines = [line for path in ROOT.glob(f"ci/results/gpu-{named}.jsonl") for line in path.read_text().splitlines()]
    judged = [found for found in map(json.loads, lines) if found.get("case_id")]
    passed = [found for found in judged if found["outcome"] == "pass"]
    ops = {found["op"] for found in passed}
    assert said.format(ops=len(ops), cases=len(passed)) in " ".join(README.split())
    assert {found["outcome"] for found in judged} <= {"pass", "unsupported"}, "none wrong, says the page"
    assert "every op" not in said or ops >= set(all_ops()) - QWEN


def test_every_command_is_documented_and_no_other() -> None:
    assert set(re.findall(r"\bm2check ([a-z]+)", README)) == set(get_group(app).commands)


def test_the_readme_stays_under_150_lines() -> None:
    assert len(README.splitlines()) < 150
