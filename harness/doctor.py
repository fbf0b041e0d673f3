"""What this machine can judge, and how every dispatch predicate decides here."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.npu import toolchain
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.providers.ours import (
    dispatch_predicates,
    gpu_toolkit,
    instruction_set_table,
    memory_nodes,
    stems,
    tiled_ops,
)


@dataclass(frozen=True, slots=True)
class Symptom:
    """One line of the examination; ``remedy`` is empty where nothing is amiss."""

    what: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Symptom]:
    """Examine software, devices, instruction sets and built kernels."""
    yield Symptom("python", platform.python_version())
    yield Symptom("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    compiler = shutil.which("g++") or shutil.which("c++")
    yield Symptom("compiler", compiler or "none", "" if compiler else "install g++ 11 or newer, or set CXX")
    cuda = gpu_toolkit().compiler()
    without = "install the CUDA toolkit 12.5 or newer, or set NVCC: without it sm_90 takes the Triton kernels"
    yield Symptom("compiler nvcc", cuda or "not here", "" if cuda else without)
    for name in ("transformers", "triton"):
        present = importlib.util.find_spec(name) is not None
        remedy = "" if present else f"pip install 'minimax-m2-harness[{name}]'" if name == "transformers" else ""
        yield Symptom(name, "installed" if present else "not here", remedy)
    for device in DEVICES:
        reason = absence(device)
        yield Symptom(f"device {device}", "here" if reason is None else f"not here: {reason}")
        built, known = stems(device), {op.stem or op.name for op in all_ops().values()}
        yield Symptom(f"kernels {device}", f"{len(known & built)} of {len(known)} op files built")
    for level in toolchain.STAGES:
        reason = toolchain.absence(level)
        yield Symptom(f"npu level {level}", f"not here: {reason}" if reason else "here, without a device")
    yield from instruction_sets()


def instruction_sets() -> Iterator[Symptom]:
    """The CPU's dispatch predicates: which variants may run, why the others may not, and what a launch chooses by."""
    for name, lacking in instruction_set_table().items():
        yield Symptom(f"cpu {name}", "runs" if not lacking else f"not here: lacks {lacking}")
    yield Symptom("cpu tile units", ", ".join(tiled_ops()) or "none")
    yield Symptom("cpu memory nodes", ", ".join(map(str, memory_nodes())))
    for name, condition in dispatch_predicates().items():
        yield Symptom(f"cpu dispatch {name}", condition)
