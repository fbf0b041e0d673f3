"""Launchers: registered at torch's dispatcher, as many programs as the card has vector cores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minimax_m2.kernels import schema

# Of an Ascend 910B3, the smaller of the cards whose compiler is open; where no card is, the grid has this many.
VECTOR_CORES = 40

# Where torch_npu registers its kernels: torch's name for a device that came later.
DISPATCH_KEY = "PrivateUse1"


def registered(name: str, launch: Callable[..., None]) -> Callable[..., None]:
    """Register ``launch`` as the NPU's kernel of ``torch.ops.minimax_m2.<name>``; return what wrappers call."""
    return schema.implemented(name, launch, DISPATCH_KEY)


def programs(rows: int, x: Tensor) -> tuple[int]:
    """The grid of a kernel that walks rows: a program a vector core, and none without a row.

    More programs than cores run in turns, each with its own start; more than 65535 do not start at all.
    """
    return (min(rows, vector_cores(x)),)


def vector_cores(x: Tensor) -> int:
    """Vector cores of the card that holds ``x``."""
    if x.device.type != "npu":
        return VECTOR_CORES
    from triton.runtime import driver

    found: int = driver.active.utils.get_device_properties(x.device.index)["num_vectorcore"]
    return found
