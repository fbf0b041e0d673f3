"""`--op O --metric util` and `latency` in a history whose kernel turns wrong, or slow, at a known commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from minimax_m2.harness.drift.histories import make_history

M2Check = Callable[..., CompletedProcess[str]]
COMMITS, STEP = 8, 5
PACKAGE = "ci/typing/minimax_m2"
# What measure_script asks of a commit's own harness. Its clock is simulated: a call takes what kernel.py says, with
# 0.2 % of noise drawn from the number of the visit, so that every run of this test is the same.
JUDGE = """
import os, random, time
from pathlib import Path
from types import SimpleNamespace

kernel = {}
exec(Path(__file__).parents[4].joinpath("kernel.py").read_text(), kernel)
visits = Path(os.environ["MINIMAX_M2_CACHE"]).parent / "visits"
visits.parent.mkdir(parents=True, exist_ok=True)
with visits.open("a") as file:
    file.write(".")
seconds = kernel["GAIN"] * (1 + random.Random(len(visits.read_text())).gauss(0, 0.002))
clock = 0.0
time.perf_counter = lambda: clock

def build(op, case, provider):
    return {}

def call(op, function, arguments):
    global clock
    clock += seconds

def judge(case, provider, variant):
    return SimpleNamespace(utilisation=0.4 * kernel["GAIN"] ** case)
"""
STAND_IN = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/harness/__init__.py": "",
    f"{PACKAGE}/harness/providers/__init__.py": "",
    f"{PACKAGE}/harness/judge.py": JUDGE,
    f"{PACKAGE}/harness/sampling.py": "def sampled(op, count):\n    return range(count)\n",
    f"{PACKAGE}/harness/op.py": "from types import SimpleNamespace\n\ndef find_op(name):\n"
    "    return SimpleNamespace(shape=lambda phase: phase)\n",
    f"{PACKAGE}/harness/providers/ours.py": "from contextlib import nullcontext\nfrom types import SimpleNamespace\n"
    "\ndef ours():\n    offered = {'experts': print}\n    return SimpleNamespace(functions=offered.get, "
    "variants_of=lambda op: [''], enter=lambda variant: nullcontext())\n",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("history")
    return folder, make_history(folder / "made", commits=COMMITS, step=STEP, beside=STAND_IN)


@pytest.mark.parametrize("metric", ["util", "latency"])
def test_the_commit_that_turned_a_kernel_is_named(made: tuple[Path, list[str]], metric: str, m2check: M2Check) -> None:
    """2 % more of its budget, or 2 % slower, from one commit on."""
    folder, commits = made
    ends = ("--good", commits[0], "--bad", commits[-1], "--repository", "made")
    done = m2check(folder, "bisect", "commit", *ends, "--op", "experts", "--metric", metric, "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["commits"] == [commits[STEP]]
    assert f"first bad: {commits[STEP][:7]}" in done.stderr


def test_an_op_without_a_kernel_gives_no_number(made: tuple[Path, list[str]], m2check: M2Check) -> None:
    folder, commits = made
    ends = ("--good", commits[0], "--bad", commits[-1], "--repository", "made")
    done = m2check(folder, "bisect", "commit", *ends, "--op", "routing")
    assert done.returncode == 4
    assert "gives no number for good" in done.stderr


def test_a_predicate_of_latency_is_what_git_bisect_run_calls(made: tuple[Path, list[str]], m2check: M2Check) -> None:
    """The ends are timed once and kept; each commit is then held against the good one in pairs."""
    folder, commits = made
    words = ("predicate", "--op", "experts", "--metric", "latency", "--good", commits[0], "--bad", commits[-1])
    codes = []
    for index in (STEP, STEP - 1):
        subprocess.run(["git", "-C", str(folder / "made"), "checkout", "-q", commits[index]], check=True)
        codes.append(m2check(folder, *words, "--repository", "made", "--ends", "ends.json").returncode)
    assert codes == [1, 0]
    kept = json.loads((folder / "ends.json").read_text())
    assert (kept["good"], kept["bad"]) == (commits[0], commits[-1])
    assert kept["effect"] <= kept["seen"]


@pytest.mark.nightly
def test_ends_that_are_equally_fast_leave_nothing_to_ask(made: tuple[Path, list[str]], m2check: M2Check) -> None:
    folder, commits = made
    words = ("--op", "experts", "--metric", "latency", "--good", commits[0], "--bad", commits[1])
    done = m2check(folder, "predicate", *words, "--repository", "made")
    assert done.returncode == 128
    assert "no slowdown is shown" in done.stderr


@pytest.mark.parametrize("words, told", [
    (("--op", "experts", "--metric", "latency"), "say --good and --bad"),
    (("--time", "echo 1"), "say --good and --bad"),
    (("--op", "experts", "--metric", "size"), "use util or latency"),
    (("--time", "echo 1", "--good", "main~2", "--bad", "main", "--ends", "other.json"), "remove it"),
    (("--time", "echo 1", "--good", "gone", "--bad", "main"), "git rev-parse"),
])  # fmt: skip
def test_wrong_use_of_a_predicate_is_one_sentence(
    made: tuple[Path, list[str]], words: tuple[str, ...], told: str, m2check: M2Check
) -> None:
    folder, _ = made
    (folder / "other.json").write_text("[]")
    done = m2check(folder, "predicate", *words, "--repository", "made")
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
