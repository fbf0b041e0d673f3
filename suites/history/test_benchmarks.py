"""What pytest-benchmark saves holds the records that every other command writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from minimax_m2.harness.bench import benchmarked
from minimax_m2.harness.history.files import read_file
from minimax_m2.harness.roofline import SIZES, Roof

ROOT = Path(__file__).resolve().parents[2]


def test_a_saved_session_leaves_records_of_its_verified_times(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "suites/bench_routing.py"), "-k", "plain and decode"]
    command += [
        "--benchmark-only",
        "--benchmark-max-time=0.05",
        "--benchmark-json=saved.json",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    # A worker of xdist would be told not to time anything.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    saved = json.loads((tmp_path / "saved.json").read_text())
    (record,) = read_file(tmp_path / saved["records"]).records
    assert (record.op, record.provider, record.purpose, record.outcome) == ("routing", "plain", "pytest", "pass")
    assert record.timing is not None
    assert record.timing.clock == "pytest-benchmark"
    (again,) = benchmarked(saved, lambda device: Roof(dict.fromkeys(SIZES, 1e10), {"float32": 1e12}), run=record.run)
    assert again.timing is not None
    assert again.timing.median_us == record.timing.median_us


def test_benchmarks_of_others_have_no_record() -> None:
    assert benchmarked({"benchmarks": [{"extra_info": {}}]}, lambda device: Roof({}, {}), run="now") == []
