"""Which devices are here. Absence is said with its reason, never passed over."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

DEVICES = ("cpu", "gpu", "npu")
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda", "npu": "npu"}


def torch_device(device: str) -> str:
    """What torch calls a device of ours."""
    return TORCH_DEVICES[device]


def synchronise(device: str) -> None:
    """Wait for a device, so that what a call did wrong is raised here and not at somebody's next call."""
    if device == "gpu":
        torch.cuda.synchronize()
    elif device == "npu":
        torch.npu.synchronize()  # type: ignore[attr-defined]


def available_bytes() -> int:
    """Memory of the host that can be had without taking it from anybody: what Linux says, or its free pages."""
    info = Path("/proc/meminfo")
    if info.is_file():
        found = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(found["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@cache
def absence(device: str) -> str | None:
    """Why a device cannot be used, or None where it answers a checked addition.

    Raises ValueError for an unknown device.
    """
    if device == "cpu":
        return None
    if device == "gpu":
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return _cannot_add("cuda")
    if device == "npu":
        if not hasattr(torch, "npu"):
            return "torch_npu is not imported and no NPU is present"
        if getattr(torch.npu, "is_fake", False):
            return "npu:0 is a fake device of this process, made of its CPU"
        return _cannot_add("npu")
    raise ValueError(f"device={device!r} is unknown; use one of {', '.join(DEVICES)}")


def _cannot_add(device: str) -> str | None:
    """Importing a device library proves nothing; an addition does."""
    try:
        total = (torch.ones(8, device=device) + torch.arange(8, device=device)).sum().item()
    except RuntimeError as error:
        return f"an addition on {device} failed: {str(error).splitlines()[0]}"
    return None if total == 36 else f"an addition on {device} gave {total}, expected 36"
