"""torch.compile of the reference at float32: what a compiler makes of the formula, the speed that a kernel must beat.

Whole models under this name are transformers' own, compiled (transformers_steps.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import plain
from minimax_m2.harness.providers.refusals import Refusals
from minimax_m2.reference.contract import EXACT

# More shapes than a run of the suites draws: beyond the limit torch.compile would run uncompiled in silence.
SHAPES = 4096
OFFERS: dict[str, tuple[str, ...]] = {"provider": tuple(all_ops())}
CAN: dict[str, Refusals] = {"provider": Refusals("torch-compile", {})}


def absence() -> str | None:
    """Torch is always here, and its compiler with a C++ compiler, which our kernels need too."""
    return None


def provider() -> Provider:
    """Every op, compiled at its first call for each shape."""
    return on("cpu", name="torch-compile")


def on(device: str, *, name: str) -> Provider:
    """The same on a device."""
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 64 * SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return Provider(name=name, device=device, functions=compiled)


class Unrounded(type(EXACT)):  # type: ignore[misc]
    """The contract of the oracle, with the ``__dict__`` that the compiler looks into."""


NOTHING_ROUNDS = Unrounded({})


@cache
def compiled(name: str) -> Callable[..., Any] | None:
    """A function of the plain provider, compiled where it is an op; packing happens once and is left as it is."""
    function = plain.function_of(name)
    if function is None or name not in all_ops():
        return function

    def call(*positional: Any, **keywords: Any) -> Any:
        return function(*positional, contract=NOTHING_ROUNDS, **keywords)

    return torch.compile(call, dynamic=False)
