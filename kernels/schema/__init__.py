"""Schemas of the ops at torch's dispatcher, one file an op, shared by cpu, gpu and npu.

``torch.ops.minimax_m2.<op>`` writes into outputs its caller allocated and returns nothing; so its fake does nothing,
and a wrapper reads: check, allocate, launch. The checks of what the host knows are the same on every device,
so they stand here too, beside the schema: ``kernels/schema/<op>.py::check``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("minimax_m2", "FRAGMENT")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)

# What a wrapper catches to say, by its check, why an allocation or a launch was refused.
REFUSED = (IndexError, KeyError, RuntimeError, ValueError)


def define(schema: str) -> None:
    """Define the op ``schema``, which returns nothing, and its fake.

    schema  e.g. ``"swiglu(Tensor gate_up, Tensor(a!) out) -> ()"``; outputs come last and are marked ``(a!)``.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    torch.library.register_fake(f"minimax_m2::{name}", lambda *args, **kwargs: None, lib=_library)


def implemented(name: str, launch: Callable[..., None], key: str) -> Callable[..., None]:
    """Register ``launch`` for ``torch.ops.minimax_m2.<name>`` under a dispatch key; return what wrappers call.

    Eager code skips the dispatcher, which costs more than the launch. Compiled code goes through it, so that the op
    stays one node of the graph and its dispatch by shape happens inside.
    """
    _library.impl(name, launch, key)
    op = getattr(torch.ops.minimax_m2, name)

    def call(*args: Any) -> None:
        if torch.compiler.is_compiling():
            op(*args)
        else:
            launch(*args)

    return call


def expect_dtype(name: str, x: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless ``x.dtype`` is one of ``allowed``."""
    if x.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} has dtype {str(x.dtype).removeprefix('torch.')}, expected {names}; convert with .to()")


def expect_shape(name: str, x: Tensor, shape: Sequence[int | None], symbols: str) -> None:
    """Raise ValueError unless ``x`` has this shape; ``None`` accepts any size, ``symbols`` is how to print it."""
    if x.dim() == len(shape):
        for size, wanted in zip(x.shape, shape):  # noqa: B905 - torch.compile traces no strict zip before 2.8
            if wanted is not None and size != wanted:
                break
        else:
            return
    sizes = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
    raise ValueError(f"{name} has shape {list(x.shape)}, expected {symbols} = [{sizes}]")


def expect_rows(name: str, x: Tensor) -> None:
    """Raise ValueError unless the last dimension is contiguous; the stride of rows is free, and an empty tensor's."""
    if x.stride(-1) != 1 and x.shape[-1] > 1 and x.numel() > 0:
        raise ValueError(f"{name} has stride {x.stride(-1)} in its last dimension, expected 1; call .contiguous()")


def expect_contiguous(name: str, x: Tensor) -> None:
    """Raise ValueError unless ``x`` is dense and row-major."""
    if not x.is_contiguous():
        raise ValueError(f"{name} has strides {list(x.stride())}, expected contiguous; call .contiguous()")


def expect_device(name: str, x: Tensor, device: torch.device) -> None:
    """Raise ValueError unless ``x`` lives on ``device``."""
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, expected {device}; move it with .to()")


def expect_range(name: str, value: float, low: float, high: float, why: str) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is outside {low}..{high}; {why}")
