"""`m2check drift` as a stranger calls it: its record, its exit codes, its last three lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from minimax_m2.harness.drift.record import Drift, read_drift

M2Check = Callable[..., CompletedProcess[str]]
FAULTS = Path(__file__).with_name("faults")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, m2check: M2Check) -> tuple[Path, CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("drift")
    plant = f"2={FAULTS / 'experts_exchanged.py'}"
    return folder, m2check(folder, "drift", "--candidate", "plain", "--plant", plant, "--length", "40")


def test_the_place_is_named_in_the_last_three_lines(faulty: tuple[Path, CompletedProcess[str]]) -> None:
    _, done = faulty
    verdict, evidence, command = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 1
    assert verdict.startswith("layer 2, experts: ")
    assert evidence == "y equals the reference after swapping experts 6 and 7"
    assert command.startswith("m2check repro runs/")
    assert command.endswith(".drift.json --layer 2 --op experts")


def test_the_record_reads_back_to_the_bit(faulty: tuple[Path, CompletedProcess[str]]) -> None:
    folder, _ = faulty
    (path,) = (folder / "runs").glob("*.drift.json")
    found = read_drift(path)
    assert Drift.from_json(found.json) == found
    assert json.loads(path.read_text())["columns"] == found.columns
    assert [cell.place for cell in found.wrong] == [(2, "experts")]
    assert [run.mode for run in found.runs] == ["free", "pinned"]
    assert found.runs[1].leaves == 3


def test_a_right_candidate_leaves_exit_code_0_and_json_where_asked(tmp_path: Path, m2check: M2Check) -> None:
    done = m2check(tmp_path, "drift", "--candidate", "plain", "--lockstep", "--length", "9", "--json")
    found = Drift.from_json(done.stdout)
    assert (done.returncode, found.wrong, found.runs) == (0, [], ())
    assert found.own == 35


def test_two_providers_can_be_held_against_each_other(tmp_path: Path, m2check: M2Check) -> None:
    words = ("--candidate", "transformers", "--reference", "ours", "--lockstep", "--length", "9")
    assert m2check(tmp_path, "drift", *words).returncode == 0


@pytest.mark.parametrize("words, told", [
    (("--candidate", "nobody"), "provider 'nobody' is unknown"),
    (("--candidate", "plain:avx9"), "provider 'plain' has no variant 'avx9'; here it has none"),
    (("--candidate", "mine.py"), "provider file 'mine.py' does not exist"),
    (("--candidate", "plain", "--plant", "9=x.py"), "write LAYER=FILE with a layer of 0..3 and a .py file"),
    (("--candidate", "plain", "--tokens", "ids.json"), "ids.json: id 2048 is outside 0..2047"),
    (("--candidate", "plain", "--tokens", "text.json"), "text.json is no JSON list of token ids"),
    (("--candidate", "plain", "--model", "gone"), "gone"),
])  # fmt: skip
def test_wrong_use_is_one_sentence_and_exit_code_2(
    tmp_path: Path, words: tuple[str, ...], told: str, m2check: M2Check
) -> None:
    (tmp_path / "ids.json").write_text("[1, 2048]")
    (tmp_path / "text.json").write_text("hello")
    done = m2check(tmp_path, "drift", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.drift.json"
    path.write_text('{"kind": "op", "schema": 2}')
    with pytest.raises(ValueError, match="is no drift run of schema 2"):
        read_drift(path)
