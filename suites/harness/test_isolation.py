"""A run survives any provider: whatever one does to its process, every other case has its record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.corpus import known_cases
from minimax_m2.harness.op import find_op
from minimax_m2.harness.record import Log, Record, read
from minimax_m2.harness.sampling import sampled

RIGHT = "(x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)"
WILD = f"""
import ctypes, os, time, torch
def rms_norm(x, weight, *, eps):
    which = [x.shape[0], x.shape[1]]
    if which == {{0}}: ctypes.string_at(0)
    if which == {{1}}: os.abort()
    if which == {{2}}: time.sleep(60)
    if which == {{3}}: torch.empty(2**34)
    if which == {{4}}: os._exit(0)
    if which == {{5}}: [os.write(1, b"x" * 2**20) for _ in range(256)]
    if which == {{6}}: bytearray(2**34)
    return {RIGHT}
"""
# Shapes of the first sampled cases, each of which meets another end.
CASES = sampled(find_op("rms_norm"), 16)
SHAPES = [[case.number("T"), case.number("H")] for case in CASES if case.number("T")][:7]
OUTCOMES = ("crashed", "crashed", "timed out", "out of memory", "crashed", "pass", "out of memory")
EVIDENCE = (
    *("died by SIGSEGV", "died by SIGABRT", "no answer to rms_norm after 2 s", "can't allocate memory"),
    *("exit code 0", "", "MemoryError"),
)


@pytest.fixture(scope="module")
def wild_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], list[Record]]:
    """A run of a provider that ends its process in another way for each of seven shapes."""
    folder = tmp_path_factory.mktemp("wild")
    (folder / "wild.py").write_text(WILD.format(*SHAPES))
    done = subprocess.run(
        [sys.executable, "-m", "minimax_m2.harness.cli", "run", "--op", "rms_norm", "--provider", "wild.py",
         "--cases", str(len(CASES)), "--isolate", "--deadline", "2", "--memory", "2"],
        cwd=folder, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    (path,) = (folder / "runs").glob("*.jsonl")
    return done, read(path)


def test_no_record_is_lost(wild_run: tuple[subprocess.CompletedProcess[str], list[Record]]) -> None:
    done, records = wild_run
    assert done.returncode == 1, done.stderr
    kept = [case for case in known_cases()["rms_norm"] if case not in CASES]
    assert [record.case for record in records] == [dict(case) for case in (*kept, *CASES)]


@pytest.mark.parametrize("which", range(7), ids=("fault", "abort", "hang", "torch", "exit", "flood", "python"))
def test_each_end_of_a_process_has_its_verdict(
    wild_run: tuple[subprocess.CompletedProcess[str], list[Record]], which: int
) -> None:
    found = [record for record in wild_run[1] if [record.case["T"], record.case["H"]] == SHAPES[which]]
    assert {record.outcome for record in found} == {OUTCOMES[which]}
    assert all(EVIDENCE[which] in " ".join(record.evidence) for record in found)


def test_the_cases_between_are_judged(wild_run: tuple[subprocess.CompletedProcess[str], list[Record]]) -> None:
    assert sum(record.passed for record in wild_run[1]) >= 8


@pytest.mark.parametrize(
    "options, told",
    [
        (["--device", "gpu"], "gpu"),
        (["--provider", "dies.py"], "cannot be loaded: the process died by SIGABRT during loading the provider"),
    ],
)
def test_what_cannot_be_isolated_is_told_in_a_sentence(tmp_path: Path, options: list[str], told: str) -> None:
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    command = [sys.executable, "-m", "minimax_m2.harness.cli", "run", "--isolate", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert told in done.stderr


# Imports once, then forks: each child judges and records until it is killed, and tells what it has recorded. It is
# killed some time after some record, so that a slow machine kills nobody before his first.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Log
from minimax_m2.harness.run import run
draw, folder, rounds = random.Random(7), Path(sys.argv[1]), int(sys.argv[2])
list(run([plain()], ops=["swiglu"], count=8, name="warm"))
for number in range(rounds):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with Log(folder / f"{number}.jsonl") as log:
            while True:
                for record in run([plain()], ops=["swiglu"], count=8, name="killed"):
                    log.append(record.json)
                    os.write(tell, b".")
    os.close(tell)
    heard = sum(len(os.read(told, 1)) for _ in range(draw.randint(1, 12)))
    time.sleep(draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(told, 65536):
        heard += len(part)
    os.close(told)
    print(heard)
"""


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_a_run_that_is_killed_loses_at_most_the_case_in_flight(tmp_path: Path, rounds: int) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    heard = [int(line) for line in done.stdout.split()]
    kept = [len(read(tmp_path / f"{number}.jsonl")) for number in range(rounds)]
    assert min(heard) > 0, "a child ended before it was killed"
    assert all(told <= found <= told + 1 for told, found in zip(heard, kept, strict=True)), (heard, kept)


@pytest.mark.parametrize("kept", [0, 1, 7, 70_000])
def test_a_line_left_half_written_is_cut_off_before_the_next_one(tmp_path: Path, kept: int) -> None:
    path, said = tmp_path / "history.jsonl", list[str]()
    path.write_text('{"whole":1}\n' + "{" + "x" * 70_000 if kept == 70_000 else '{"whole":1}\n' + '{"torn":'[:kept])
    with Log(path, report=said.append) as log:
        log.append('{"next":2}')
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"whole": 1}, {"next": 2}]
    assert len(said) == (kept > 0)


def test_a_log_that_must_be_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("x")
    with pytest.raises(FileExistsError):
        Log(tmp_path / "run.jsonl", new=True)


def test_a_full_disk_is_told() -> None:
    with Log(Path("/dev/full")) as log, pytest.raises(OSError, match="No space left"):
        log.append("{}")
