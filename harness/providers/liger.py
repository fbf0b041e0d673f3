"""liger-kernel on an NVIDIA GPU: Triton kernels of a training library, called forward as its autograd functions do.

Its SwiGLU takes gate and up apart and dense; of more than one row they are copied out of the op's ``gate_up``, and that
is timed. Its rotation takes the rows of the table by token, gathered by torch, and works in place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness import devices
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Declared
from minimax_m2.harness.peers import folder, library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
WHEEL, PACKAGE = "liger-kernel", "liger_kernel"
REMEDY = "make peers-gpu"
# The convention of Llama, which is M2's: statistics in float32, the normalised row in the model's dtype.
CASTING = "llama"

CONTRACT: dict[str, Declared] = {
    "rms_norm": {"normalised": "dtype"},
    "add_rms_norm": {"residual": "dtype", "variance_of": "rounded", "normalised": "dtype"},
    "swiglu": {"exp_ulps": 4.0, "silu": "dtype"},
    "rope": {},
}
HALVES: tuple[Field, ...] = ("bfloat16", "float16")


def _tokens(case: Case) -> str | None:
    return None if case.number("T") else "the kernels are not launched for T=0"


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "liger",
        {
            "rms_norm": {"dtype": HALVES},
            "add_rms_norm": {"dtype": HALVES},
            "swiglu": {"dtype": HALVES},
            "rope": {"dtype": HALVES},
        },
        dict.fromkeys(("rms_norm", "add_rms_norm", "swiglu", "rope"), _tokens),
    )
}


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if (reason := devices.absence(DEVICE)) is not None:
        return reason
    return None if library(WHEEL, PACKAGE, "ops/rms_norm.py") else f"liger-kernel is not installed; {REMEDY}"


def provider() -> Provider:
    """liger's forward kernels."""
    return Provider(
        name="liger", device=DEVICE, functions=OFFERS["provider"].get, contract=CONTRACT, refuses=CAN["provider"]
    )


@cache
def engine(name: str) -> ModuleType:
    """A module of the library's ops."""
    if (place := str(folder(WHEEL))) not in sys.path:
        sys.path.append(place)
    return importlib.import_module(f"{PACKAGE}.ops.{name}")


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rms_norm_forward on dense rows, as LigerRMSNormFunction makes them."""
    y: Tensor = engine("rms_norm").rms_norm_forward(x.contiguous(), weight, eps, 0.0, CASTING, None)[0]
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """fused_add_rms_norm_forward on dense rows."""
    forward = engine("fused_add_rms_norm").fused_add_rms_norm_forward
    y, total, *_ = forward(x.contiguous(), residual.contiguous(), weight, eps, 0.0, CASTING)
    return y, total


def swiglu(gate_up: Tensor) -> Tensor:
    """swiglu_forward of the dense halves."""
    gate, up = gate_up.chunk(2, -1)
    y: Tensor = engine("swiglu").swiglu_forward(gate.contiguous(), up.contiguous())[2]
    return y


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """rope_forward on copies, in float32 by the table."""
    cos, sin = cos_sin[positions].float().chunk(2, -1)
    # [1, heads, T, D], whose transpose the kernel finds dense and writes to.
    rows = [x.clone(memory_format=torch.contiguous_format).transpose(0, 1)[None] for x in (q, k)]
    turned = engine("rope").rope_forward(*rows, cos[None], sin[None], rotary_dim=rotary_dim)
    return turned[0][0].transpose(0, 1), turned[1][0].transpose(0, 1)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "swiglu": swiglu, "rope": rope}
}
