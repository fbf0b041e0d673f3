"""The wheel vllm: vLLM's kernels on an NVIDIA GPU.

Its libraries are loaded without vLLM's Python, and of that the functions that launch its Triton kernel alone are taken
(``vllm_experts``). What MiniMax-M2 runs in the engine is called, in the engine's order.

The engine adds a residual in place and leaves v where it is. Forms named ``<op>_in_place`` do the same and are what is
timed; the others copy first, as the op promises, and are what the suites judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness import devices
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Declared
from minimax_m2.harness.peers import built_for, library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import vllm_experts, vllm_rope
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
BUILT_FOR = "2.11.0"
REMEDY = "make peers-gpu"
WHEEL, PACKAGE = "vllm", "vllm"
LIBRARIES = ("_C_stable_libtorch.abi3.so", "_moe_C_stable_libtorch.abi3.so")
# The one router product that is compiled for MiniMax-M2, up to so many tokens; beyond, cuBLAS.
GATE_SHAPE, GATE_TOKENS = (256, 3072), 32

# expf of CUDA's libm.
EXP = {"exp_ulps": 2.0}
ADDED = {"residual": "dtype", "variance_of": "rounded"}
# compute_rms and norm_and_quant of layernorm_utils.cuh add in float32, and round before and after the weight.
QUANTISED = {"residual": "dtype", "variance_of": "unrounded", "normalised": "dtype", "out": "dtype"}


def _experts_contract(case: Case) -> dict[str, Any]:
    """Gate and up are stored; activated in float32 where the same kernel quantises, else in the model's dtype."""
    sites = {**EXP, "gate_up": "dtype", "weighted": "dtype"}
    if case["quant"] == "none":
        return sites | {"silu": "dtype", "act": "dtype", "tensor_core": "bfloat16"}
    return sites | {"activation": "e4m3", "act": "float32", "tensor_core": "e4m3"}


CONTRACT: dict[str, Declared] = {
    "routing": EXP,
    "router": EXP,
    "rms_norm": {},
    "add_rms_norm": ADDED,
    "add_rms_norm_quant": QUANTISED,
    "swiglu": {**EXP, "silu": "dtype"},
    "swiglu_quant": EXP,
    "rope": {"cos_sin": "dtype"},
    "qk_norm_rope": {"normalised": "dtype", "cos_sin": "dtype"},
    "experts": _experts_contract,
}

HALVES: tuple[Field, ...] = ("bfloat16", "float16")
ROUTING: dict[str, tuple[Field, ...]] = {
    "scoring": ("sigmoid",), "ids": ("int32",), "valid": (0,), "E": (256,), "K": (8,), "renormalize": (1,),
    "bias": ("small", "zero", "large", "below"), "gap": (0,),
}  # fmt: skip
ROTATED: dict[str, tuple[Field, ...]] = {"positions": ("int64",), "dtype": HALVES}
CODED: dict[str, tuple[Field, ...]] = {"dtype": HALVES, "group": (128,), "gap": (0,)}


def _groups(field: str) -> Callable[[Case], str | None]:
    """A width that is no multiple of a group has no kernel."""
    return lambda case: (
        f"the kernel takes multiples of {vllm_experts.GROUP}, not {field}={case[field]}"
        if case.number(field) % vllm_experts.GROUP
        else None
    )


def unlaunched(case: Case) -> str | None:
    """Why the experts do not run a case, or None."""
    odd = [name for name in ("H", "I") if case.number(name) % vllm_experts.GROUP]
    told = f"the kernel takes multiples of {vllm_experts.GROUP}, not {odd[0]}={case[odd[0]]}" if odd else None
    return _tokens(case) or _out(case) or told


def _tokens(case: Case) -> str | None:
    return None if case.number("T") else "the kernels are not launched for T=0"


EXPERTS: dict[str, tuple[Field, ...]] = {
    "dtype": HALVES, "ids": ("int32",), "map": (0,), "load": ("even", "hot", "same"), "quant": ("none", "weights"),
    "block": (128,), "gap": (0,),
}  # fmt: skip

# Widths that hold whole groups.
WIDE_ACT: dict[str, tuple[Field, ...]] = {"I": (128, 384)}
WIDE: dict[str, tuple[Field, ...]] = {"H": (128, 256, 3072)}


def _can(engine: str) -> Refusals:
    return Refusals(
        engine,
        {
            "routing": {**ROUTING, "eps": (0,), "scale": (1,), "dtype": ("float32",)},
            "router": {**ROUTING, "H": (3072,), "dtype": ("bfloat16", "float32")},
            "router_gemm": {
                "E": (256,), "H": (3072,), "bias": (0,), "dtype": ("bfloat16", "float32"), "gap": (0,),
            },
            "rms_norm": {"dtype": HALVES},
            "add_rms_norm": {"dtype": HALVES, "gap": (0,)},
            "add_rms_norm_quant": CODED,
            "swiglu": {"dtype": HALVES, "gap": (0,)},
            "swiglu_quant": {**CODED, "q": ("float8_e4m3fn",)},
            "block_quant": {**CODED, "scale_format": ("float32",)},
            "rope": ROTATED,
            "qk_norm_rope": {**ROTATED, "stats": ("none",), "weights": ("model",)},
            "experts": EXPERTS,
        },
        {
            "experts": unlaunched,
            "block_quant": lambda case: _tokens(case) or _groups("H")(case),
            "add_rms_norm_quant": lambda case: _tokens(case) or _groups("H")(case),
            "swiglu_quant": lambda case: _tokens(case) or _groups("I")(case),
            **dict.fromkeys(("rope", "qk_norm_rope"), _heads),
            **dict.fromkeys(("routing", "router", "router_gemm", "rms_norm", "add_rms_norm", "swiglu"), _tokens),
        },
        {"experts": WIDE | WIDE_ACT, "add_rms_norm_quant": WIDE, "block_quant": WIDE, "swiglu_quant": WIDE_ACT},
    )  # fmt: skip


def _heads(case: Case) -> str | None:
    odd = case.number("Hq") % case.number("Hk")
    return f"the kernel takes Hq in multiples of Hk, not Hq={case['Hq']} Hk={case['Hk']}" if odd else _tokens(case)


def _out(case: Case) -> str | None:
    return None if case["out"] == case["dtype"] else f"the kernel returns {case['dtype']}, not out={case['out']}"


CAN: dict[str, Refusals] = {"vllm": _can("vllm-cuda"), "grouped": _can("vllm-cuda-grouped")}


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if (reason := devices.absence(DEVICE)) is not None:
        return reason
    missing = [name for name in LIBRARIES if library(WHEEL, PACKAGE, name) is None]
    return f"{missing[0]} of vllm is not installed; {REMEDY}" if missing else built_for(BUILT_FOR)


def vllm() -> Provider:
    """What the engine runs for MiniMax-M2: topk_sigmoid chooses experts."""
    return _provider("vllm")


def grouped() -> Provider:
    """The same with grouped_topk, in one group, which the engine has and is faster."""
    return _provider("grouped")


def _provider(name: str) -> Provider:
    loaded()
    can = CAN[name]
    return Provider(name=can.engine, device=DEVICE, functions=OFFERS[name].get, contract=CONTRACT, refuses=can)


@cache
def loaded() -> Path:
    """The package's folder, its libraries loaded. Raises FileNotFoundError where one is missing."""
    found = []
    for name in LIBRARIES:
        file = library(WHEEL, PACKAGE, name)
        if file is None:
            raise FileNotFoundError(f"{name} of vllm is not installed; {REMEDY}")
        torch.ops.load_library(str(file))
        found.append(file.parent)
    return found[0]


def topk_sigmoid(logits: Tensor, bias: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """_moe_C.topk_sigmoid, renormalised."""
    weights = torch.empty((logits.shape[0], top_k), dtype=torch.float32, device=logits.device)
    ids, slots = (torch.empty(weights.shape, dtype=torch.int32, device=logits.device) for _ in range(2))
    torch.ops._moe_C.topk_sigmoid(weights, ids, slots, logits, True, bias)
    return weights, ids


def grouped_topk(logits: Tensor, bias: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """_moe_C.grouped_topk with one group and sigmoids (1), renormalised."""
    return torch.ops._moe_C.grouped_topk(logits, 1, 1, top_k, True, 1.0, bias, 1)


Choose = Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor]]


def routing(
    choose: Choose, logits: Tensor, bias: Tensor | None, *, top_k: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """One of the two kernels."""
    return choose(logits, bias, top_k)


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """fp32_router_gemm where GateLinear has it, else its linear in float32."""
    if tuple(weight.shape) != GATE_SHAPE or x.shape[0] > GATE_TOKENS:
        return torch.nn.functional.linear(x.float(), weight)
    logits = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    torch.ops._C.fp32_router_gemm(logits, x, weight)
    return logits


def router(
    choose: Choose, x: Tensor, weight: Tensor, bias: Tensor | None, *, top_k: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """The gate, then the choice."""
    return choose(router_gemm(x, weight), bias, top_k)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rms_norm."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.ops._C.rms_norm(y, x, weight, eps)
    return y


def add_rms_norm_in_place(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """fused_add_rms_norm: x becomes the result, residual the sum."""
    torch.ops._C.fused_add_rms_norm(x, residual, weight, eps)
    return x, residual


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """fused_add_rms_norm on copies."""
    return add_rms_norm_in_place(x.clone(), residual.clone(), weight, eps=eps)


def add_rms_norm_quant_in_place(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """rms_norm_per_block_quant, which stores the sum in residual."""
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((x.shape[0], x.shape[1] // group), dtype=torch.float32, device=x.device)
    torch.ops._C.rms_norm_per_block_quant(q, x, weight, scale, eps, None, residual, group, False)
    return q, scale, residual


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on a copy of residual."""
    return add_rms_norm_quant_in_place(x, residual.clone(), weight, eps=eps, group=group)


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    """per_token_group_fp8_quant."""
    return vllm_experts.quantised(x)


def swiglu_quant(gate_up: Tensor, *, group: int = 128, quant: str = "e4m3") -> tuple[Tensor, Tensor]:
    """silu_and_mul_per_block_quant."""
    return vllm_experts.gated_and_quantised(gate_up)


def experts(x: Tensor, packed: vllm_experts.PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """The Triton experts."""
    return vllm_experts.experts(loaded(), x, packed, weights, ids)


def _offered(choose: Choose) -> Mapping[str, Callable[..., Any]]:
    return {
        "routing": partial(routing, choose),
        "router": partial(router, choose),
        "router_gemm": router_gemm,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "add_rms_norm_in_place": add_rms_norm_in_place,
        "add_rms_norm_quant": add_rms_norm_quant,
        "add_rms_norm_quant_in_place": add_rms_norm_quant_in_place,
        "block_quant": block_quant,
        "swiglu": vllm_experts.gated,
        "swiglu_quant": swiglu_quant,
        "rope": vllm_rope.rope,
        "qk_norm_rope": partial(vllm_rope.qk_norm_rope, rms_norm),
        "qk_norm_rope_in_place": partial(vllm_rope.qk_norm_rope_in_place, rms_norm),
        "pack_experts": vllm_experts.pack_experts,
        "experts": experts,
    }


OFFERS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "vllm": _offered(topk_sigmoid),
    "grouped": {name: made for name, made in _offered(grouped_topk).items() if name in ("routing", "router")},
}
