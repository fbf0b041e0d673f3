"""Other engines' kernels, by name: where their wheels lie, and why one is not here.

``make peers`` puts each wheel, without what it depends on, into a folder of its own under ``.peers/``; their libraries
clash in one process and some kill it, so each peer of a CPU runs in a worker. Those of a GPU run in the process that
asks: a second one would take turns with it on the device.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals
from minimax_m2.harness.worker import DEADLINE, Worker, provider_in

# The module of each peer: ``absence()`` says why it cannot run, ``<function>()`` builds its provider.
PEERS = {
    "vllm-cpu": ("vllm_cpu", "vllm"),
    "sglang-cpu": ("vllm_cpu", "sglang"),
    "sglang-cpu-fp8": ("vllm_cpu", "sglang_fp8"),
    "sglang-cpu-int8": ("vllm_cpu", "sglang_int8"),
    "sglang-cpu-gdn": ("sglang_gdn", "sglang_gdn"),
    "zentorch": ("zentorch", "provider"),
    "kt-kernel": ("kt_kernel", "provider"),
    "torch-compile": ("torch_compile", "provider"),
    "vllm-cuda": ("vllm_cuda", "vllm"),
    "vllm-cuda-grouped": ("vllm_cuda", "grouped"),
    "vllm-fa3": ("vllm_attention", "provider"),
    "deep-gemm": ("deep_gemm", "provider"),
    "flashinfer": ("flashinfer", "provider"),
    "flashinfer-xqa": ("flashinfer", "xqa"),
    "liger": ("liger", "provider"),
    "sdpa-cudnn": ("sdpa", "cudnn"),
    "sdpa-flash": ("sdpa", "flash"),
    "torch-cuda": ("torch_cuda", "provider"),
    "torch-compile-cuda": ("torch_compile_cuda", "provider"),
}
# Providers that need no process of their own, and may have one.
BUILT_IN = {
    "ours": ("ours", "ours"),
    "plain": ("plain", "plain"),
    "transformers": ("transformers_ops", "transformers_ops"),
}
ENVIRONMENT_VARIABLE = "MINIMAX_M2_PEERS"


class NotHere(RuntimeError):
    """A peer cannot run on this machine; the message says why."""


def folder(wheel: str) -> Path:
    """Where ``make peers`` puts a wheel."""
    root = os.environ.get(ENVIRONMENT_VARIABLE)
    return (Path(root) if root else Path(__file__).resolve().parent.parent / ".peers") / wheel


def library(wheel: str, package: str, file: str) -> Path | None:
    """A file of a peer's package: in its own folder, else where it is installed; nothing of it is imported."""
    candidates = [folder(wheel) / package]
    spec = find_spec(package) if package.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        candidates += [Path(place) for place in spec.submodule_search_locations]
    return next((found for place in candidates for found in sorted(place.glob(file))), None)


def built_for(version: str) -> str | None:
    """Why a library built for one torch cannot be loaded by this one."""
    here = torch.__version__.partition("+")[0]
    return None if here == version else f"it was built for torch {version}, this is {here}"


def source(name: str) -> str:
    """What a worker loads a provider from; ValueError lists the known ones, and says where a file goes."""
    known = BUILT_IN | PEERS
    if name.endswith(".py"):
        raise ValueError(f"provider {name!r} is a file, not a name; write --provider {name}")
    if name not in known:
        raise ValueError(f"provider {name!r} is unknown; use one of {', '.join(known)}, or a .py file")
    module, function = known[name]
    return f"minimax_m2.harness.providers.{module}:{function}"


def can(name: str) -> Refusals:
    """What a peer can express; no library is loaded for it."""
    return _module(name).CAN[PEERS[name][1]]


def offers(name: str) -> tuple[str, ...]:
    """The ops that a peer offers; no library is loaded for it."""
    offered = _module(name).OFFERS[PEERS[name][1]]
    return tuple(op for op in all_ops() if op in offered)


def device_of(name: str) -> str:
    """Where a peer's kernels run."""
    return getattr(_module(name), "DEVICE", "cpu")


def absence(name: str) -> str | None:
    """Why a peer cannot run here, or None."""
    return _module(name).absence()


def on_gpu(name: str) -> Provider:
    """A peer's kernels on the GPU, in this process. Raises NotHere with the reason where it is absent."""
    if (reason := absence(name)) is not None:
        raise NotHere(f"{name} is not here: {reason}")
    return getattr(_module(name), PEERS[name][1])()


def _module(name: str) -> ModuleType:
    return importlib.import_module(source(name).partition(":")[0])


def process_source(name: str) -> str:
    """What a worker loads a provider from: its file, or the module of its name."""
    return name if name.endswith(".py") else source(name)


@contextmanager
def apart(name: str, *, deadline: float = DEADLINE) -> Iterator[tuple[Worker, Provider]]:
    """A provider by name or file in a process of its own, which ends with the block.

    Raises NotHere with the reason where a peer is absent, ValueError for an unknown name or a peer of a GPU.
    """
    if name in PEERS and device_of(name) != "cpu":
        raise ValueError(f"provider {name!r} runs on {device_of(name)}, not on cpu in a process of its own")
    if name in PEERS and (reason := absence(name)) is not None:
        raise NotHere(f"{name} is not here: {reason}")
    with closing(Worker(process_source(name), deadline=deadline)) as worker:
        yield worker, provider_in(worker, name=Path(name).stem if name.endswith(".py") else name)


def known_variant(name: str, variant: str, known: Sequence[str]) -> str:
    """The variant, where the provider has it or none is asked for; ValueError lists those it has."""
    if variant and variant not in known:
        raise ValueError(f"provider {name!r} has no variant {variant!r}; here it has {', '.join(known)}")
    return variant
