"""What docs/trust.md says of runs on a GPU is what their records hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRUST = (ROOT / "docs" / "trust.md").read_text()
RUNS = [
    json.loads(line)
    for path in sorted(ROOT.glob("ci/results/gpu-*-20261123-tests.jsonl"))
    for line in path.read_text().splitlines()
]


@pytest.mark.parametrize("found", RUNS, ids=lambda found: f"{found['device']}-{found['commit']}")
def test_a_run_stands_in_the_table_with_what_it_counted(found: dict[str, Any]) -> None:
    row = [found["device"], found["commit"], *(found[key] for key in ("passed", "failed", "skipped"))]
    row += [round(found["seconds"]), found["stopped"] or "no"]
    assert f"| {' | '.join(map(str, row))} |" in TRUST
    assert sum(found["skips"].values()) == found["skipped"]
    assert len(found["failures"]) == found["failed"]


def test_which_ops_have_the_same_bits_on_two_devices_is_counted_from_the_record() -> None:
    lines = (ROOT / "ci/results/devices-20261123.jsonl").read_text().splitlines()
    cards = [found for found in map(json.loads, lines) if found["provider"] == "ours"]
    assert {"cpu", "gpu"} == {found["device"] for found in cards}
    marks = {op: {found["determinism"][-1] for found in cards if found["op"] == op} for op in {f["op"] for f in cards}}
    assert set().union(*marks.values()) == {"+", "-"}
    (same, other) = re.findall(r"\(D5\): (.*?) have them; (.*?) have\s+other last", TRUST, re.DOTALL)[0]
    for words, mark in ((same, "+"), (other, "-")):
        assert re.findall(r"`(\w+)`", words) == sorted(op for op, found in marks.items() if found == {mark})
