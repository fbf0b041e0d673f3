"""What a process with a fake npu:0 finds out, one line of JSON: ``test_fake_device.py`` reads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.devices import absence
from minimax_m2.harness.npu import fake_device
from minimax_m2.harness.npu.launches import Launch, taken_over
from minimax_m2.kernels.npu.rms_norm import rms_norm


def told(call: Callable[[], object]) -> str:
    """What a call raises, by type and first line."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "nothing raised"


def launched(call: Callable[[], object]) -> dict[str, Any]:
    """The grids of what a call launches, none of which runs, and which ops it brings to the device."""
    found: list[Launch] = []
    fake_device.DISPATCHED.clear()
    with fake_device.card(), taken_over(found.append):
        call()
    return {"grids": [launch.grid for launch in found], "ops": list(fake_device.DISPATCHED)}


def drawn_again() -> bool:
    """Whether what is drawn inside of ``fork_rng`` leaves the device's generator as it was."""
    torch.manual_seed(3)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        torch.randn(5, device="npu")
    first = torch.randn(5, device="npu")
    torch.manual_seed(3)
    return torch.equal(first, torch.randn(5, device="npu"))


def facts() -> dict[str, Any]:
    fake_device.install()
    host, weight = torch.arange(12.0).reshape(3, 4), torch.ones(4)
    x = host.to("npu")
    y: Tensor = torch.empty(3, 4, device="npu")
    op = torch.ops.minimax_m2.rms_norm
    many, on_npu_weight = x.repeat(100, 1), weight.to("npu")
    row = x[1]
    row.zero_()
    return {
        "device": [
            str(x.device),
            str((x + 1).device),
            str(x.cpu().device),
            str(torch.tensor([1], device="npu").device),
        ],
        "view": x.cpu().tolist(),
        "numbers": torch.equal((x @ x.T).cpu(), x.cpu() @ x.cpu().T),
        "scalar": (x * torch.tensor(2.0)).sum().item(),
        "mixed": told(lambda: x + host),
        "mixed index": told(lambda: x[torch.tensor([0])]),
        "mixed wrapper": told(lambda: rms_norm(x, weight, eps=1e-6)),
        "mixed launch": told(lambda: with_host_weight(op, x, weight, y)),
        "numpy": told(lambda: x.numpy()),
        "twice": told(fake_device.install),
        "absence": absence("npu"),
        "launched": launched(lambda: op(many, on_npu_weight, 1e-6, torch.empty_like(many))),
        "generator": drawn_again(),
        "module": str(torch.nn.Linear(4, 2).to("npu").weight.device),
    }


def with_host_weight(op: Callable[..., object], x: Tensor, weight: Tensor, y: Tensor) -> None:
    def take(launch: Launch) -> None:
        fake_device.launch_in_memory(launch)

    with fake_device.card(), taken_over(take):
        op(x, weight, 1e-6, y)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
