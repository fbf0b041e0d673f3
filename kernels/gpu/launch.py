"""Launchers: registered at torch's dispatcher, called directly where nothing is being compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels import schema

# The oldest architecture that every kernel compiles for.
OLDEST = 80
# So many warps of a launch leave room on a large GPU for the programs of the next.
ROOM = 1024
# When a launch lets the next one begin.
NEVER, AFTER_WAITING, AT_ONCE = 0, 1, 2


def registered(name: str, launch: Callable[..., None]) -> Callable[..., None]:
    """Register ``launch`` as the CUDA kernel of ``torch.ops.minimax_m2.<name>``; return what wrappers call."""
    return schema.implemented(name, launch, "CUDA")


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Make ``x``'s GPU the current one: Triton launches there whatever its arguments say."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def capability(x: Tensor) -> int:
    """The compute capability whose path runs: 90 for sm_90; ``MINIMAX_M2_GPU_ARCH`` forces a lower one.

    A tensor of no GPU (the interpreter) takes the oldest path unless the variable says otherwise.
    """
    forced = os.environ.get("MINIMAX_M2_GPU_ARCH")
    if not x.is_cuda:
        return int(forced) if forced else OLDEST
    major, minor = torch.cuda.get_device_capability(x.device)
    return min(int(forced), 10 * major + minor) if forced else 10 * major + minor


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has; few for a device that is none, where the interpreter runs one by one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def converts_e4m3(capability: int) -> bool:
    """Whether the hardware converts float32 to e4m3."""
    return capability >= 89


def overlaps(capability: int) -> bool:
    """Whether a launch may begin while the one before it ends.

    Until it has waited, its kernel may read what no kernel writes, a weight, and nothing else.
    """
    return capability >= 90


def starts_early(capability: int) -> dict[str, bool]:
    """Options of a launch that may begin before the kernel ahead of it has ended: ``wait_for_predecessor`` is its due.

    Programmatic dependent launch, sm_90 and later: the start of a kernel, a third of a short one, hides behind the
    end of the other.
    """
    early = overlaps(capability)
    return {"EARLY": early, "launch_pdl": early}


def chained(capability: int, warps: int, *, tokens: int = 0) -> dict[str, int]:
    """Options of a short launch among others, for ``take_turn``: it may begin early, and so may the next one.

    Of more ``warps`` than leave room none lets the next begin: its first programs would crowd where they fit. A launch
    of a single token lets it begin at once, unless the number of its ``tokens`` is kept back, since the next one reads
    before it waits what kernels before this one wrote. A layer then takes 3 us less of 80, and 6 more of 283 at eight.
    """
    early = overlaps(capability)
    followed = NEVER if not early or warps > ROOM else AT_ONCE if tokens == 1 else AFTER_WAITING
    return {"EARLY": early, "FOLLOWED": followed, "launch_pdl": early}


@triton.jit
def wait_for_predecessor(EARLY: tl.constexpr):
    """Wait for all kernels before this one: nothing that others write may be touched earlier."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    """Let the next kernel's programs take their places, where they wait.

    In a long kernel near its end: programs that come while others still run crowd on the multiprocessors that happen
    to have room, and stay there. Before ``wait_for_predecessor`` only where the next one reads no more than weights
    until it waits: what waits for this kernel waits for all before it, what does not wait for none.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def take_turn(EARLY: tl.constexpr, FOLLOWED: tl.constexpr):
    """Wait for all kernels before this one, and let the next one's programs take their places when FOLLOWED says."""
    let_next_start(FOLLOWED == 2)
    wait_for_predecessor(EARLY)
    let_next_start(FOLLOWED == 1)
