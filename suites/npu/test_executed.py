"""Levels N3a and N3b: what Huawei's compiler lowers, and what it plans, computes what the reference does."""

from __future__ import annotations

import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.interpreter import Interpreted
from minimax_m2.harness.npu import lowered_run, planned_run
from minimax_m2.harness.npu.executed import in_own_process, main
from minimax_m2.harness.npu.launches import Launch
from minimax_m2.harness.npu.native_call import CompilerRefused
from minimax_m2.harness.npu.our_kernels import built
from minimax_m2.harness.npu.spoilt import FAULTS, KERNELS, spoilt
from minimax_m2.harness.npu.toolchain import ENVIRONMENT_VARIABLE, compiler, reason_to_skip

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = {level: reason_to_skip(level) for level in ("N3a", "N3b")}
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE["N3a"]), reason=f"not here: {ABSENCE['N3a']}")]

# Plans take Huawei's compiler seconds each.
CASES = {"N3a": 30, "N3b": 12}
FEW = 6
REFUSED = Path(__file__).with_name("refused_kernels.py")


@cache
def judged(op: str) -> dict[str, Interpreted]:
    """An op at both levels, in one process: what a right answer is takes longer than either."""
    return in_own_process(op, CASES)


@pytest.mark.parametrize(
    "level, op", [pytest.param(level, name, id=f"{level}-{name}") for name in built() for level in CASES]
)
def test_a_kernel_is_right_at_m2s_widths(level: str, op: str) -> None:
    found = judged(op)[level]

    assert not found.failures, "\n".join(found.failures)
    assert found.judged == CASES[level]
    busy = found.judged - found.idle
    assert busy
    assert found.launches >= busy, f"{found.launches} launches for {busy} cases of {op} with tokens"


def test_every_file_of_kernels_has_a_fault() -> None:
    files = {path.stem for path in KERNELS.glob("*.py") if "@triton.jit" in path.read_text()}
    assert {fault.file for fault in FAULTS.values()} == files


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_caught(fault: str, tmp_path: Path) -> None:
    failures = in_own_process(FAULTS[fault].op, {"N3a": FEW}, spoilt(tmp_path, FAULTS[fault]))["N3a"].failures
    assert [": wrong\n" in failure or ": not a number\n" in failure for failure in failures].count(True) > 0


def test_a_failure_prints_the_command_that_replays_it(tmp_path: Path) -> None:
    failures = in_own_process("swiglu", {"N3b": 1}, spoilt(tmp_path, FAULTS["the other half gates"]))["N3b"].failures
    command = shlex.split(failures[0].rpartition("replay: ")[2])
    again = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 1, again.stderr[-2000:]
    # The same evidence, and the same command; a case as JSON has its fields by name.
    assert again.stdout.splitlines()[1:] == failures[0].splitlines()[1:]


def test_a_level_that_is_not_here_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "none")
    assert main(["rms_norm", "--level", "N3b"]) == 5
    assert capsys.readouterr().err == "N3b is not here: Huawei's compilers are not in none; run make npu-toolchain\n"


def ran(kernel: str, rows: int, n: int, level: str) -> torch.Tensor:
    """What a kernel of two buffers leaves in the second, of 64 numbers; all but ``rows`` were -7."""
    x, y = torch.arange(64.0), torch.full((64,), -7.0)
    signature = (("x_ptr", "*fp32"), ("y_ptr", "*fp32"), ("rows", "i32"))
    launch = Launch(Named(kernel), signature, (("N", n),), (x, y, rows), (64 // n,))
    with compiler() as by:
        {"N3a": lowered_run, "N3b": planned_run}[level].running(by, [])(launch)
    return y


class Named:
    """Stands for a Triton function that only its file defines."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.fn = self

    @property
    def __code__(self) -> Named:
        return self

    @property
    def co_filename(self) -> str:
        return str(REFUSED)


@pytest.mark.parametrize("level", CASES)
def test_a_mask_keeps_what_is_behind_it(level: str) -> None:
    y = ran("doubled", 40, 16, level)
    assert torch.equal(y[:40], 2 * torch.arange(40.0))
    assert torch.equal(y[40:], torch.full((24,), -7.0))


@pytest.mark.parametrize("level", CASES)
def test_a_dropped_mask_is_caught(level: str) -> None:
    assert not torch.equal(ran("store_without_mask", 40, 16, level)[40:], torch.full((24,), -7.0))


@pytest.mark.parametrize("run", [lowered_run, planned_run], ids=["N3a", "N3b"])
def test_a_kernel_that_does_not_lower_is_no_pass(run: Any) -> None:
    launch = Launch(Named("doubled"), (("x_ptr", "*fp8e4nv"), ("y_ptr", "*fp32"), ("rows", "i32")), (("N", 16),),
                    (torch.zeros(64), torch.zeros(64), 1), (4,))  # fmt: skip
    with compiler() as by, pytest.raises(CompilerRefused, match="fp8"):
        run.running(by, [])(launch)
