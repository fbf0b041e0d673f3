"""Level N4: on a fake npu:0 tensors have a place, a mixed call raises, and our kernels are what the dispatcher runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minimax_m2.harness.npu.on_fake_device import in_own_process
from minimax_m2.harness.npu.our_kernels import built
from minimax_m2.harness.npu.toolchain import reason_to_skip

pytest.importorskip("triton", reason="Triton is not installed; our kernels cannot be imported")
pytestmark = pytest.mark.npu
ABSENCE = reason_to_skip("N3a")
needs_executor = pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")

CASES = 6
# Beyond 32 tokens each of tiny-m2's experts has had some.
LENGTH = 48


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What a process with the device found out."""
    file = str(Path(__file__).with_name("facts.py"))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tensors_lie_where_they_were_put(facts: dict[str, Any]) -> None:
    assert facts["device"] == ["npu:0", "npu:0", "cpu", "npu:0"]
    assert facts["module"] == "npu:0"


def test_a_view_is_the_memory_that_it_views(facts: dict[str, Any]) -> None:
    assert facts["view"] == [[0, 1, 2, 3], [0, 0, 0, 0], [8, 9, 10, 11]]


def test_numbers_are_those_of_the_cpu(facts: dict[str, Any]) -> None:
    assert facts["numbers"] is True
    assert facts["scalar"] == 2 * (0 + 1 + 2 + 3 + 8 + 9 + 10 + 11)


@pytest.mark.parametrize(
    "call, error",
    [
        ("mixed", "RuntimeError: aten::add.Tensor: expected all tensors to be on the same device, but found two"),
        ("mixed index", "RuntimeError: aten::index.Tensor: expected all tensors to be on the same device"),
        ("mixed wrapper", "ValueError: weight is on cpu, expected npu:0; move it with .to()"),
        ("mixed launch", "RuntimeError: rms_norm_kernel: weight_ptr is on cpu"),
        ("numpy", "RuntimeError: .numpy()"),
        ("twice", "RuntimeError: torch has a device npu already"),
    ],
)
def test_what_a_device_refuses_is_refused(call: str, error: str, facts: dict[str, Any]) -> None:
    assert facts[call].startswith(error)


def test_the_dispatcher_runs_our_kernel_on_as_many_cores_as_the_card_says(facts: dict[str, Any]) -> None:
    assert facts["launched"] == {"grids": [[48]], "ops": ["aten::empty_like", "minimax_m2::rms_norm"]}


def test_a_fake_device_is_no_device(facts: dict[str, Any]) -> None:
    assert facts["absence"] == "npu:0 is a fake device of this process, made of its CPU"


def test_what_is_drawn_in_a_fork_leaves_the_generator_as_it_was(facts: dict[str, Any]) -> None:
    assert facts["generator"] is True


@pytest.fixture(scope="module")
def judged() -> dict[str, dict[str, Any]]:
    """Our kernels, judged on the device, by op; in one process, because each takes seconds to start."""
    return {found["op"]: found for found in in_own_process("ops", *built(), "--cases", str(CASES))}


@needs_executor
@pytest.mark.parametrize("op", [pytest.param(name, id=f"N4-{name}") for name in built()])
def test_a_kernel_is_right_on_the_device(op: str, judged: dict[str, dict[str, Any]]) -> None:
    found = judged[op]
    assert not found["failures"], "\n".join(found["failures"])
    assert found["judged"] == CASES
    busy = found["judged"] - found["idle"]
    assert busy
    assert found["launches"] >= busy


# What kernels written for CPU tensors do: the right numbers, in the wrong place.
MISPLACED = """
import torch

def rms_norm(x, weight, *, eps):
    z = x.float()
    y = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps) * weight.float()
    return torch.empty(x.shape, dtype=x.dtype).copy_(y)

def swiglu(gate_up):
    gate, up = gate_up.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up * torch.ones(up.shape)).to(gate_up.dtype)
"""


@needs_executor
def test_a_misplaced_tensor_is_caught_and_its_replay_finds_it_again(tmp_path: Path) -> None:
    file = tmp_path / "misplaced.py"
    file.write_text(MISPLACED)
    norm, gated = in_own_process("ops", "rms_norm", "swiglu", "--cases", "2", "--file", str(file))
    assert ["y lies on cpu, expected npu" in failure for failure in norm["failures"]] == [True, True]
    assert ["found two: npu:0 and cpu" in failure for failure in gated["failures"]] == [True, True]

    command = shlex.split(gated["failures"][0].rpartition("replay: ")[2])
    again = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 1, again.stderr[-2000:]
    assert again.stdout.splitlines()[1:] == gated["failures"][0].splitlines()[1:]


@needs_executor
def test_tiny_m2_reads_there_as_it_does_on_the_cpu() -> None:
    (found,) = in_own_process("model", "--length", str(LENGTH), "--torch-npu", "2.7.1")
    assert found["is_same"]
    assert found["cross_entropy"] == found["expected"]
    assert found["verdict"] == "pass", found["evidence"]
    # Ours, and torch_npu's attention; embedding, linear, fp8_linear and lm_head are torch's.
    assert (found["own"], found["steps"]) == (7, 11)
    assert found["launches"] > 0
