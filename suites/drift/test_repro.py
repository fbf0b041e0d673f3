"""A wrong step becomes a folder that fails by itself, small, and passes with a right provider in its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from torch import Tensor

from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.repro import MOST_LINES, SCRIPT, write_repro
from minimax_m2.harness.drift.trajectory import Trajectory
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.repro import NotWritten

Written = Callable[[str], Path]


@pytest.fixture
def written(trajectory: Trajectory, clean: Candidate, faults: dict[str, Fault], tmp_path: Path) -> Written:
    def write(name: str) -> Path:
        fault = faults[name]
        call = prefill(trajectory, (2, fault.step))
        return write_repro(call, planted(clean, (2, fault)), tmp_path / name, seconds=20)

    return write


def prefill(trajectory: Trajectory, place: tuple[int, str]) -> Call:
    return trajectory.at(place)[0]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "repro.py", *words], cwd=folder, capture_output=True, text=True)


def right_file(folder: Path, op: str, *packs: str) -> str:
    lines = [f"{name} = right({name!r})" for name in (op, *packs)]
    path = folder / "right.py"
    path.write_text("\n".join(["from minimax_m2.harness.museum import right", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("name, packs", [
    ("eps_too_large", ()), ("bias_ignored", ()), ("experts_exchanged", ("pack_experts",)),
    *(pytest.param(name, (), marks=pytest.mark.nightly) for name in (
        "gain_of_two_percent", "not_renormalised", "norm_per_head", "scale_of_three_percent", "last_token_not_stored",
    )),
])  # fmt: skip
def test_a_folder_fails_by_itself_and_passes_with_a_right_provider(
    written: Written, name: str, packs: tuple[str, ...]
) -> None:
    folder = written(name)
    meta = json.loads((folder / "meta.json").read_text())
    wrong, right = run(folder), run(folder, right_file(folder, meta["op"], *packs))
    assert (wrong.returncode, right.returncode) == (1, 0), right.stderr
    assert wrong.stderr.startswith("wrong: ")


def test_a_folder_holds_as_few_rows_and_columns_as_fail(written: Written) -> None:
    folder = written("column_dropped")
    inputs = load_file(folder / "inputs.safetensors")
    assert inputs["x"].shape == (1, 256)
    assert inputs["weight"].shape[0] == 38


def test_a_script_says_when_its_provider_cannot_be_loaded(written: Written, tmp_path: Path) -> None:
    folder = written("gain_of_two_percent")
    assert run(folder, str(tmp_path / "gone.py")).returncode == 125
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert run(folder, str(empty)).returncode == 125


def test_a_right_step_has_no_folder(trajectory: Trajectory, clean: Candidate, tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match="is within its budget"):
        write_repro(prefill(trajectory, (1, "o_proj")), clean, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_no_script_can_load_has_no_folder(trajectory: Trajectory, clean: Candidate, tmp_path: Path) -> None:
    def linear(x: Tensor, weight: Tensor, **out: object) -> Tensor:
        return x @ weight.mT * 2

    nowhere = replace(clean, planted={(1, "o_proj"): from_object(SimpleNamespace(linear=linear), name="nowhere")})
    with pytest.raises(NotWritten, match="ends in 125, not in 1"):
        write_repro(prefill(trajectory, (1, "o_proj")), nowhere, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_script_is_read_at_a_glance() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= MOST_LINES
