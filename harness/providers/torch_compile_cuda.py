"""torch.compile of the reference on an NVIDIA GPU: what Inductor makes of the formula, float32 until it returns.

As on a CPU (``torch_compile``). Where the formula asks the device for a number (attention, experts), a call cannot be
captured in a graph, and a comparison says so.
"""

from __future__ import annotations

from minimax_m2.harness import devices
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import torch_compile
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
OFFERS: dict[str, tuple[str, ...]] = {"provider": tuple(all_ops())}
CAN: dict[str, Refusals] = {"provider": Refusals("torch-compile-cuda", {})}


def absence() -> str | None:
    """Why there is no GPU to run on, or None."""
    return devices.absence(DEVICE)


def provider() -> Provider:
    """Every op, compiled at its first call for each shape."""
    return torch_compile.on(DEVICE, name="torch-compile-cuda")
