"""FlashInfer on an NVIDIA GPU: its norms, SwiGLU, rotation and attention over pages.

Its kernels are compiled at their first use, by nvcc and in minutes, unless the package holds them compiled (its
``data/aot``); so each op is offered for what M2 takes. Its norms are those of CUDA C++, which it takes where
nvidia-cutlass-dsl is absent. Not offered: its routing, which refuses one group of experts for more than one choice, and
its grouped e4m3 products, hundreds of files to compile.
"""

from __future__ import annotations

import importlib
import shutil
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
from minimax_m2.harness.providers import flashinfer_attention
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
WHEEL, PACKAGE = "flashinfer-python", "flashinfer"
REMEDY = "make peers-gpu"

# norm.cuh adds in float32, keeps the unrounded sum for the statistics and rounds once; activation.cuh too, with __expf,
# which errs by 2 + 1.17 |x| ulp; pos_enc.cuh rotates in float32. Attention: ex2.approx on a scaled argument.
CONTRACT: dict[str, Declared] = {
    "rms_norm": {},
    "add_rms_norm": {},
    "swiglu": {"exp_ulps": 20.0},
    "rope": {},
    "attention": {"tensor_core": "bfloat16", "exp_ulps": 4.0},
}
HALVES: tuple[Field, ...] = ("bfloat16", "float16")


def _tokens(case: Case) -> str | None:
    return None if case.number("T") else "the kernels are not launched for T=0"


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "flashinfer",
        {
            # Vectors of 16 bytes are read where a row begins.
            "rms_norm": {"dtype": HALVES, "gap": (0,)},
            "add_rms_norm": {"dtype": HALVES, "gap": (0,)},
            "swiglu": {"dtype": HALVES, "gap": (0,)},
            "rope": {
                "dtype": HALVES, "table": ("float32",), "gap": (0,), "table_gap": (0,), "D": (64, 128), "R": (64, 128),
            },
            "attention": flashinfer_attention.PAGED,
        },
        {
            **dict.fromkeys(("rms_norm", "add_rms_norm", "swiglu", "rope"), _tokens),
            "attention": flashinfer_attention.unplanned,
        },
        {"rope": {"D": (64, 128), "R": (64, 64)}},
    ),
    "xqa": Refusals(
        "flashinfer-xqa",
        {"attention": flashinfer_attention.XQA},
        {"attention": flashinfer_attention.unplanned},
    ),
}  # fmt: skip


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if (reason := devices.absence(DEVICE)) is not None:
        return reason
    if library(WHEEL, PACKAGE, "decode.py") is None:
        return f"flashinfer-python is not installed; {REMEDY}"
    if torch.cuda.get_device_capability() != (9, 0):
        return "it is compared on compute capability 9.0 alone"
    if library(WHEEL, PACKAGE, "data/aot/*/*.so") or shutil.which("nvcc"):
        return None
    return "it compiles its kernels, and nvcc is not on the PATH"


def provider() -> Provider:
    """What its interfaces choose for the card."""
    return _provider("provider")


def xqa() -> Provider:
    """Its decode attention by TensorRT-LLM's XQA, which plans nothing on the host."""
    return _provider("xqa")


def _provider(name: str) -> Provider:
    loaded()
    can = CAN[name]
    return Provider(name=can.engine, device=DEVICE, functions=OFFERS[name].get, contract=CONTRACT, refuses=can)


@cache
def loaded() -> ModuleType:
    """The package, out of its wheel."""
    if (place := str(folder(WHEEL))) not in sys.path:
        sys.path.append(place)
    return importlib.import_module(PACKAGE)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rmsnorm."""
    y: Tensor = loaded().norm.rmsnorm(x, weight, eps)
    return y


def add_rms_norm_in_place(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """fused_add_rmsnorm: x becomes the result, residual the sum."""
    loaded().norm.fused_add_rmsnorm(x, residual, weight, eps)
    return x, residual


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The same on copies."""
    return add_rms_norm_in_place(x.clone(), residual.clone(), weight, eps=eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu_and_mul."""
    y: Tensor = loaded().activation.silu_and_mul(gate_up)
    return y


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """apply_rope_with_cos_sin_cache, which returns new tensors."""
    turn = loaded().rope.apply_rope_with_cos_sin_cache
    turned = turn(positions, q.flatten(1), k.flatten(1), q.shape[-1], cos_sin)
    return turned[0].view(q.shape), turned[1].view(k.shape)


def attention(*given: Any, **sizes: Any) -> Tensor:
    """BatchDecodeWithPagedKVCacheWrapper for one query a sequence, BatchPrefillWithPagedKVCacheWrapper else."""
    return flashinfer_attention.attention(loaded(), *given, **sizes)


def decode(*given: Any, **sizes: Any) -> Tensor:
    """xqa_batch_decode_with_kv_cache."""
    return flashinfer_attention.decode(loaded(), *given, **sizes)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "add_rms_norm_in_place": add_rms_norm_in_place,
        "swiglu": swiglu,
        "rope": rope,
        "attention": attention,
    },
    "xqa": {"attention": decode},
}
