"""The command line: exit codes, the last three lines, and messages instead of tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from minimax_m2.harness import cli
from minimax_m2.harness.commands_run import conclude
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record, read
from minimax_m2.harness.report import headline
from minimax_m2.harness.summary import lines

IGNORES_THE_BIAS = """
import torch
def routing(logits, bias, *, top_k, renormalize=True, scoring="sigmoid", scale=1.0, eps=0.0,
            indices_dtype=torch.int32, num_valid=None):
    score = torch.sigmoid(logits.float()) if scoring == "sigmoid" else logits.float().softmax(-1)
    ids = score.topk(top_k, -1).indices
    weights = score.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    padding = torch.arange(len(ids))[:, None] >= (len(ids) if num_valid is None else num_valid)
    return (weights * scale).masked_fill(padding, 0.0), ids.masked_fill(padding, -1).to(indices_dtype)
"""


def m2check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minimax_m2.harness.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wrong_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.py").write_text(IGNORES_THE_BIAS)
    words = ("run", "--op", "routing", "--provider", "mine.py", "--report", "page.html", "--shrink", "0")
    return folder, m2check(folder, *words)


def test_a_wrong_provider_ends_in_one_and_names_token_gap_and_budget(
    wrong_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = wrong_run[1]
    assert done.returncode == 1, done.stderr
    verdict, evidence, command = done.stderr.strip().splitlines()[-3:]
    assert "routing-mine-cpu" in verdict
    assert all(word in evidence for word in ("token", "expert", "gap", "budget"))
    assert command.startswith("m2check repro ")


def test_the_last_line_of_a_failure_replays_it(wrong_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = wrong_run
    again = m2check(folder, *done.stderr.strip().splitlines()[-1].split()[1:])
    assert again.returncode == 1, again.stderr
    assert "left out expert" in again.stdout


def test_a_run_leaves_records_that_read_back(wrong_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    (path,) = (wrong_run[0] / "runs").glob("*.jsonl")
    records = read(path)
    assert {r.provider for r in records} == {"mine"}
    assert any(not r.passed for r in records)


def test_the_page_is_one_file_that_names_what_is_wrong(
    wrong_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    page = (wrong_run[0] / "page.html").read_text()
    assert "left out expert" in page
    assert "--provider mine.py" in page
    assert "src=" not in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--op", "routin"), "unknown op 'routin'"),
        (("run", "--provider", "nowhere.py"), "'nowhere.py' does not exist"),
        (("run", "--with", "plain", "--variant", "avx1"), "variant 'avx1' is none of these providers'"),
        (("repro", "deadbeef"), "no recorded case has id 'deadbeef'"),
        (("repro", '{"op": 3}'), "names no op"),
        (("generate", "--op", "nothing"), "unknown op 'nothing'"),
        (("run", "--pdb"), "say which case with --case ID"),
        (("run", "--op", "linear", "--case", find_op("swiglu").case().json), "is one of swiglu"),
    ],
)
def test_wrong_use_ends_in_two_with_one_sentence(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = m2check(tmp_path, *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_op_that_nobody_offers_ends_in_five(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IGNORES_THE_BIAS)
    done = m2check(tmp_path, "run", "--op", "experts", "--provider", "mine.py")
    assert done.returncode == 5, done.stderr


def test_a_run_without_a_judged_case_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusing = replace(plain(), refuses=lambda op, case: "needs AMX")
    record = Record.of(judge(find_op("linear").case(), refusing), run="now")
    with pytest.raises(typer.Exit) as left:
        conclude([record], tmp_path, sources={}, whole=False)
    assert left.value.exit_code == 5
    assert "linear: needs AMX" in capsys.readouterr().err
    assert "not measured: linear-plain-cpu" in headline(lines([record]))


def test_a_cell_that_could_not_tell_is_not_called_wrong() -> None:
    found = [Record.of(judge(find_op(name).case(), plain()), run="now") for name in ("linear", "rms_norm", "swiglu")]
    found[0], found[1] = replace(found[0], outcome="vacuous"), replace(found[1], outcome="wrong")
    assert headline(lines(found)) == (
        "1 of 3 cells are wrong: rms_norm-plain-cpu; 1 of 3 cells could not tell right from wrong: linear-plain-cpu"
    )


def test_a_busy_machine_is_told_beside_its_times(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        done = m2check(tmp_path, "run", "--op", "moe_align", "--with", "plain", "--cases", "1", "--no-model")
        other.kill()
    assert "cores busy: verdicts stand, times and shares of the roof do not" in done.stderr


def test_a_case_that_a_contract_hides_is_neither_wrong_nor_right(tmp_path: Path) -> None:
    hidden = find_op("routing").case(
        T=1, E=17, K=4, bias="none", regime="near_tie", dtype="bfloat16", eps=1, ids="int64", seed=236
    )
    coarse = {"scores": "dtype"}
    (tmp_path / "mine.py").write_text(f"contract = {{'routing': {coarse}}}\nrouting = print\n")
    done = m2check(tmp_path, "repro", hidden.json, "--provider", "mine.py")
    assert done.returncode == 5, done.stderr
    assert "the contract's own noise hides" in done.stderr


def test_a_plain_run_passes_and_prints_records_as_json(tmp_path: Path) -> None:
    done = m2check(tmp_path, "run", "--op", "routing", "--with", "plain", "--cases", "4", "--json")
    assert done.returncode == 0, done.stderr
    records = [Record.from_json(line) for line in done.stdout.splitlines()]
    assert all(r.passed for r in records)
    assert {r.timing.shape for r in records if r.timing} == {"decode", "prefill"}


def test_one_case_can_be_judged_by_run_and_by_repro_as_json(tmp_path: Path) -> None:
    case = find_op("swiglu").case(T=5)
    for words in (("run", "--op", "swiglu", "--case"), ("repro",)):
        done = m2check(tmp_path, *words, case.json, "--with", "plain", "--json")
        assert done.returncode == 0, done.stderr
        assert Record.from_json(done.stdout).case_id == case.id
        assert len(done.stderr.strip().splitlines()) == 3


def test_pdb_stops_before_the_call(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minimax_m2.harness.cli", "run", "--case", find_op("swiglu").case(T=5).json]
    done = subprocess.run(
        [*command, "--with", "plain", "--pdb"], cwd=tmp_path, input="p found.id\nc\n", capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert "(Pdb)" in done.stdout
    assert find_op("swiglu").case(T=5).id in done.stdout
    assert done.returncode == 0, done.stderr


def test_generated_cases_are_json_with_the_same_ids_every_time(tmp_path: Path) -> None:
    first, second = (m2check(tmp_path, "generate", "--op", "routing", "--count", "3").stdout for _ in range(2))
    assert first == second
    assert [json.loads(line)["op"] for line in first.splitlines()] == ["routing"] * 3


def test_doctor_names_every_instruction_set(tmp_path: Path) -> None:
    found = json.loads(m2check(tmp_path, "doctor", "--json").stdout)
    assert {"cpu portable", "cpu avx2", "cpu avx512", "cpu avx512_bf16", "cpu amx"} <= {s["what"] for s in found}


def test_a_device_that_is_not_here_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "absence", lambda device: None if device == "cpu" else "torch sees no CUDA device")
    monkeypatch.setattr(sys, "argv", ["m2check", "run", "--with", "ours", "--device", "gpu", "--op", "routing"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "torch sees no CUDA device" in " ".join(capsys.readouterr().err.split())


def exit_code(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["m2check", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["repro", '{"op":"routing"}'], "case field 'E' is missing or unknown"),
        (["bench", "--set", "T"], "is no assignment"),
        (["compare", "ours", "nosuch", "--op", "routing"], "'nosuch' is unknown"),
        (["score", "--op", "nosuch"], "unknown op 'nosuch'"),
    ],
)
def test_wrong_use_is_a_sentence_and_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_fault_of_ours_is_no_wrong_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*args: object, **keywords: object) -> None:
        raise KeyError("a field that the harness itself forgot")

    monkeypatch.setattr(cli, "judge", broken)
    assert exit_code("repro", find_op("swiglu").case().json, "--with", "plain") == cli.BROKEN
    assert "Traceback" in capsys.readouterr().err


def test_a_contract_that_no_engine_has_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("contract = {'swiglu': {'silu': 'float7'}}\ndef swiglu(gate_up): ...\n")
    assert exit_code("run", "--provider", str(file)) == 2
    assert "silu='float7' is not one that an engine has" in " ".join(capsys.readouterr().err.split())
