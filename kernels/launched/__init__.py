"""The public functions of ops on devices to which kernels are launched, one file an op: check, allocate, launch.

They are the same on every such device, so a device's file holds its kernels and how each is launched, and calls
``functions``. The host waits for nothing that a kernel computes: what an argument holds is no error there.
"""

from __future__ import annotations

from collections.abc import Callable

Launch = Callable[..., None]


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``, and at least 1: what a Triton tile may be wide."""
    return 1 << max(n - 1, 0).bit_length()
