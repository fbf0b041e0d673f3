"""`m2check bisect commit` and `m2check predicate` on a made history, and on a step that a drift run wrote."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import planted, read_fault
from minimax_m2.harness.drift.histories import make_history
from minimax_m2.harness.drift.repro import write_repro
from minimax_m2.harness.drift.trajectory import Trajectory

M2Check = Callable[..., CompletedProcess[str]]
CHECK = "python -m py_compile kernel.py || exit 125; python -c 'import kernel, sys; sys.exit(kernel.GAIN != 1.0)'"
GAIN = "python -c 'import kernel; print(kernel.GAIN)'"


def test_the_planted_commit_is_named_and_shown(tmp_path: Path, m2check: M2Check) -> None:
    commits = make_history(tmp_path / "made", commits=20, step=13)
    words = ("bisect", "commit", "--good", commits[0], "--bad", "main", "--test", CHECK, "--repository", "made")
    done = m2check(tmp_path, *words, "--json")
    verdict, evidence, command = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 1
    assert verdict.endswith("change 13")
    assert evidence.endswith("commits tested of 20")
    assert command == f"git -C made show {commits[13][:12]}"
    assert json.loads(done.stdout)["commits"] == [commits[13]]


def test_a_broken_range_is_told_as_a_range(tmp_path: Path, m2check: M2Check) -> None:
    commits = make_history(tmp_path / "made", commits=20, step=9, broken=range(7, 12))
    words = ("bisect", "commit", "--good", commits[0], "--bad", commits[-1], "--test", CHECK, "--repository", "made")
    done = m2check(tmp_path, *words, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["commits"] == commits[7:13]
    assert "first bad is one of 6 commits" in done.stderr


def test_ends_that_do_not_differ_are_exit_code_4(tmp_path: Path, m2check: M2Check) -> None:
    commits = make_history(tmp_path / "made", commits=6, step=1)
    words = ("bisect", "commit", "--good", commits[2], "--bad", commits[5], "--test", CHECK, "--repository", "made")
    done = m2check(tmp_path, *words)
    assert done.returncode == 4
    assert "do not differ" in done.stderr


@pytest.mark.parametrize("words, told", [
    (("--good", "a", "--bad", "b"), "say one of --repro, --op, --test, --time"),
    (("--good", "a", "--bad", "b", "--test", "true"), "git rev-parse"),
    (("--good", "main", "--bad", "main~2", "--test", "true"), "is no ancestor of bad"),
    (("--good", "main~2", "--bad", "main", "--repro", "gone"), "holds no repro.py"),
    (("--good", "main~2", "--bad", "main", "--op", "linear", "--metric", "size"), "use util or latency"),
])  # fmt: skip
def test_wrong_use_is_one_sentence_and_exit_code_2(
    tmp_path: Path, words: tuple[str, ...], told: str, m2check: M2Check
) -> None:
    make_history(tmp_path / "made", commits=3, step=1)
    done = m2check(tmp_path, "bisect", "commit", *words, "--repository", "made")
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words, code", [
    (("--test", "exit 0"), 0),
    (("--test", "exit 7"), 1),
    (("--test", "exit 125"), 125),
    (("--test", "exit 130"), 128),
    (("--test", "exit 0", "--build", "exit 2"), 125),
    (("--test", "exit 0", "--canary", "exit 1"), 128),
    ((), 2),
])  # fmt: skip
def test_a_predicate_speaks_the_codes_of_git_bisect_run(
    tmp_path: Path, words: tuple[str, ...], code: int, m2check: M2Check
) -> None:
    assert m2check(tmp_path, "predicate", *words).returncode == code


@pytest.mark.nightly
def test_a_written_step_finds_the_commit_of_its_provider_s_file(
    tmp_path: Path, trajectory: Trajectory, clean: Candidate, m2check: M2Check
) -> None:
    """The provider is a file of the history: each commit's own is run on the kept inputs."""
    faulty = Path(__file__).with_name("faults") / "gain_of_two_percent.py"
    made = tmp_path / "made"
    make_history(made, commits=2, step=1)
    git = ["git", "-C", str(made), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "checkout", "-q", "main"], check=True)
    for index, gain in enumerate(("1.00", "1.00", "1.00", "1.02", "1.02")):
        (made / "provider.py").write_text(faulty.read_text().replace("1.02", gain) + f"\n# {index}\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"provider {index}"], check=True)
    fault = read_fault(made / "provider.py")
    write_repro(trajectory.at((2, "o_proj"))[0], planted(clean, (2, fault)), tmp_path / "step", seconds=10)
    words = ("bisect", "commit", "--good", "main~4", "--bad", "main", "--repro", "step", "--repository", "made")
    done = m2check(tmp_path, *words)
    assert done.returncode == 1
    assert "first bad: " in done.stderr
    assert "provider 3" in done.stderr


@pytest.mark.nightly
def test_a_commit_is_found_by_a_number_that_it_prints(tmp_path: Path, m2check: M2Check) -> None:
    commits = make_history(tmp_path / "made", commits=8, step=5)
    ends = ("--good", commits[0], "--bad", commits[-1], "--repository", "made", "--budget", "5")
    done = m2check(tmp_path, "bisect", "commit", *ends, "--time", GAIN)
    assert "change 5" in done.stderr
