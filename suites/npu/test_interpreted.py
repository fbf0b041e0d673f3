"""Level N0: the source of every NPU kernel is right, in Triton's interpreter, bfloat16 included."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.interpreter import in_own_process
from minimax_m2.harness.npu import spoilt
from minimax_m2.harness.npu.our_kernels import built

pytest.importorskip("triton", reason="Triton is not installed; the level N0 is not here")

CASES = 24
# The interpreter takes milliseconds a choice, and a tile of codes.
FEWER = {"routing": 8, "block_dequant": 6, "moe_align": 8}


@pytest.mark.npu
@pytest.mark.parametrize("op", [pytest.param(name, id=f"N0-{name}") for name in built()])
def test_the_source_is_right_in_the_interpreter(op: str) -> None:
    found = in_own_process(op, FEWER.get(op, CASES), device="npu")

    assert not found.failures, "\n".join(found.failures)
    assert found.judged == FEWER.get(op, CASES), f"{found.refused} cases were refused, {found.judged} judged"
    # The witness: outputs that no Triton function wrote would have been made by something else.
    busy = found.judged - found.idle
    assert busy
    assert found.launches >= busy, f"{found.launches} launches for {busy} cases of {op} with tokens"


# Each is what deployments had: what our kernel writes, and what stood in its place.
WRONG = {
    "the second half of a pair turned back": ("qk_norm_rope_whole", "b * cos + a * sin", "b * cos - a * sin"),
    "the norm rounded before it is turned": (
        "qk_norm_rope_whole", "tl.store(y + turn, (a * cos", "tl.store(y + turn, (a.to(tl.float16).to(tl.float32) * cos"
    ),
    "eps outside the root": ("qk_norm_rope_rows", "tl.sqrt(squares / width + eps)", "(tl.sqrt(squares / width) + eps)"),
    "all rows read the first angle": ("qk_norm_rope_rows", "row * cos_stride", "0 * cos_stride"),
}  # fmt: skip


@pytest.mark.npu
@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_kernel_is_caught(change: str, tmp_path: Path) -> None:
    file, right, wrong = WRONG[change]
    fault = spoilt.Spoilt(file, "qk_norm_rope", right, wrong)
    assert in_own_process("qk_norm_rope", CASES // 2, spoilt.spoilt(tmp_path, fault), device="npu").failures


@pytest.mark.npu
def test_a_failure_prints_the_command_that_replays_it(tmp_path: Path) -> None:
    file = spoilt.spoilt(tmp_path, spoilt.FAULTS["the other half gates"])
    failures = in_own_process("swiglu", 1, file, device="npu").failures
    setting, _, command = failures[0].rpartition("replay: ")[2].partition(" ")
    again = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], env=os.environ | dict([setting.split("=")]), capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert again.returncode == 1, again.stderr[-2000:]
    # The same evidence, and the same command; a case as JSON has its fields by name.
    assert again.stdout.splitlines()[1:] == failures[0].splitlines()[1:]
