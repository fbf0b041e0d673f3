"""The reference as an implementation: plain torch in float32, rounded once at the end.

It is the control of the harness (a correct kernel by construction, so an alarm is the harness's fault) and the
baseline that speeds are given against.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.op import Op, all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import shaped_as, values_of


def plain(device: str = "cpu") -> Provider:
    """Plain torch on ``device``."""
    return Provider(name="plain", device=device, functions=function_of)


# Of a float64 input the reference leaves codes as wide as it computes them, and a keyword names their dtype.
CODES = "swiglu_quant"


def wide(device: str = "cpu") -> Provider:
    """The same in float64: a kernel whose every sum is better than any that is fast."""
    functions = partial(function_of, working=torch.float64)
    return Provider(name="float64", device=device, functions=lambda name: None if name == CODES else functions(name))


def function_of(name: str, *, working: torch.dtype = torch.float32) -> Callable[..., Any] | None:
    """An op's reference at ``working``, or a packing function of a reference."""
    ops = all_ops()
    if name in ops:
        return _at(ops[name], working)
    owner = next((op for op in ops.values() if name.startswith("pack_") and hasattr(op.module, name)), None)
    return None if owner is None else getattr(owner.module, name)


def _at(op: Op, working: torch.dtype) -> Callable[..., Any]:
    parameters = list(inspect.signature(op.reference).parameters)

    def call(*positional: Any, **keywords: Any) -> Any:
        given = dict(zip(parameters, positional, strict=False)) | keywords
        out_dtype = given.pop("out_dtype", None)
        # Codes of 8 bits are no working dtype: what comes of them has that of their scales.
        ranked = [given.get(name) for name in (*op.budgeted, *given)]
        first = next((v for v in ranked if isinstance(v, Tensor) and v.is_floating_point() and v.itemsize > 1), None)
        kind = out_dtype or given.get("dtype") or (torch.float32 if first is None else first.dtype)
        widened = {name: v if name in op.mutates else _wide(v, working) for name, v in given.items()}
        returned = op.bind(op.reference, widened)()
        names = [name for name in op.outputs if name not in op.mutates]
        # Copied: a reference may return a view of its input, a kernel may not.
        cast = (_narrow(v, op.outputs[n], kind).clone() for n, v in zip(names, values_of(returned), strict=True))
        return shaped_as(returned, cast)

    call.__name__ = op.name
    return call


def _wide(value: Any, working: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(working)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_wide(v, working) for v in value))
    return value


def _narrow(value: Tensor, declared: str, kind: torch.dtype) -> Tensor:
    """Outputs declared by dtype name keep it; those that follow a case field take ``kind``."""
    if not value.is_floating_point() or value.element_size() == 1:
        return value
    named = getattr(torch, declared, None)
    return value.to(named if isinstance(named, torch.dtype) else kind)
