"""Kept failures are data: validated field by field, judged before all others, and never executed."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.case import Case
from minimax_m2.harness.corpus import Known, all_known, corpus_dir, file_name, load, save, validated
from minimax_m2.harness.judge import judge
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.run import run
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.verdict import Outcome

CASE = find_op("rms_norm").case(T=2, H=17)
KNOWN = Known(
    case=dict(CASE), case_id=CASE.id, outcome="wrong", evidence="y at [0, 0]", provider="mine",
    device="cpu", variant="", torch="2.13.0",
)  # fmt: skip


def test_a_case_reads_back_as_it_was_kept(tmp_path: Path) -> None:
    path = save(KNOWN, tmp_path)
    assert path.name == f"rms_norm-{CASE.id}.json"
    assert load(path) == KNOWN
    assert list(all_known(tmp_path)) == [KNOWN]


def test_the_first_finder_stays(tmp_path: Path) -> None:
    path = save(KNOWN, tmp_path)
    before = path.read_bytes()
    save(Known.from_json(KNOWN.json.replace("mine", "other")), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change, told",
    [
        ({"schema": 2}, "schema=2 cannot be read"),
        ({"outcome": "fine"}, "outcome='fine' is unknown"),
        ({"torch": 2}, "torch=2 is a int, expected str"),
        ({"code": "import os"}, "fields are missing or unknown"),
        ({"case_id": "00000000"}, "is not that of its case"),
        ({"case": {"op": "no_such_op"}}, "unknown op 'no_such_op'"),
        ({"case": {"op": "rms_norm", "T": 1}}, "case field 'H' is missing or unknown"),
        ({"case": dict(CASE) | {"T": 2**31}}, "outside 0..1048576"),
        ({"case": dict(CASE) | {"regime": "__import__"}}, "case field regime='__import__' is none of"),
        ({"case": dict(CASE) | {"T": "2"}}, "case field T='2' is no int"),
        ({"case": dict(CASE) | {"T": [2]}}, "case field T=[2] is a list"),
    ],
)
def test_what_is_no_case_is_refused_by_field(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Known.from_json(json.dumps(json.loads(KNOWN.json) | change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|missing"):
        Known.from_json(text)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "exploded"),))

    for name in ("rms_norm-1.json", "rms_norm-1.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="rms_norm-1"):
            load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_every_sampled_case_is_valid(op_name: str) -> None:
    assert all(validated(case) == case for case in sampled(find_op(op_name), 40))


def test_only_a_failure_is_kept() -> None:
    with pytest.raises(ValueError, match="no failure to keep"):
        Known.of(judge(CASE, plain()), torch="2.13.0")


def test_a_run_judges_known_failures_first() -> None:
    records = list(run([plain()], ops=["rms_norm"], count=3, name="now", failures={"rms_norm": [CASE]}))
    assert [record.case_id for record in records] == [CASE.id, *(c.id for c in sampled(find_op("rms_norm"), 3))]


def test_the_checkout_keeps_cases_of_several_ops() -> None:
    kept = list(all_known(corpus_dir()))
    assert len({known.case["op"] for known in kept}) >= 5
    assert all(file_name(known).endswith(".json") for known in kept)


def test_known_failures_stay_mended(cell: Cell, provider: Provider) -> None:
    mine = [Case(known.case) for known in all_known(corpus_dir()) if known.case["op"] == cell.op]
    verdicts = [judge(case, provider, cell.variant) for case in mine]
    assert [v.explain() for v in verdicts if not v.passed and v.outcome is not Outcome.UNSUPPORTED] == []


def test_add_shrinks_keeps_and_replay_fails_until_it_is_mended(tmp_path: Path) -> None:
    body = "import torch\ndef rms_norm(x, weight, *, eps):\n    y = (x.float() * torch.rsqrt(x.float().square()"
    body += ".mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)\n    "
    (tmp_path / "kept").mkdir()

    def m2check(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "minimax_m2.harness.cli", "corpus", *words]
        command += ["--folder", "kept", "--provider", "mine.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    (tmp_path / "mine.py").write_text(f"{body}y[-1] = 0; return y\n")
    added = m2check("add", CASE.json, "--no-shrink")
    assert (added.returncode, f"kept rms_norm-{CASE.id}.json" in added.stderr) == (0, True), added.stderr
    replayed = m2check("replay")
    assert (replayed.returncode, "1 of 1 calls are wrong" in replayed.stderr) == (1, True), replayed.stderr
    (tmp_path / "mine.py").write_text(f"{body}return y\n")
    assert m2check("replay").returncode == 0
    refused = m2check("add", CASE.json)
    assert (refused.returncode, "there is no failure" in refused.stderr) == (5, True), refused.stderr
