"""DeepGEMM, as the wheel vllm carries it: e4m3 products with a scale a block, compiled by nvcc at their first call.

What is between them is vLLM's: its kernels that quantise, and for experts those of ``DeepGemmExperts.apply``, which
gather tokens by expert, gate, and add up.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.op import Declared
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import vllm_cuda, vllm_experts
from minimax_m2.harness.providers.excerpt import excerpt
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
FOLDER = "third_party"
# Rows that a column of scales is padded to: 16 bytes of float32, which the copy engine asks for.
ALIGNED = 4

# What a call of the grouped product pads the rows of an expert to, as the engine finds it on sm_90.
PADDED = 128
HEAD = "from __future__ import annotations\nimport torch\nimport triton\nimport triton.language as tl"
MOE = "model_executor/layers/fused_moe"

# deep_gemm/include/deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh adds each 128 products to float32 registers. Between its
# products rows are bf16; _silu_mul_per_token_group_quant_fp8_colmajor multiplies by 1/448, and _fwd_kernel_ep_gather
# weighs in float32.
CONTRACT: dict[str, Declared] = {
    "fp8_linear": {"activation": "e4m3", "tensor_core": "e4m3"},
    "experts": {
        "activation": "e4m3", "reciprocal": "float32", "tensor_core": "e4m3", "exp_ulps": 2.0, "gate_up": "dtype",
        "silu": "dtype", "act": "dtype", "down": "dtype", "weighted": None,
    },
}  # fmt: skip


def _widths(case: Case) -> str | None:
    if not case.number("T"):
        return "the kernels are not launched for T=0"
    odd = [name for name in ("N", "H") if case.number(name) % vllm_experts.GROUP]
    return f"the kernel takes multiples of {vllm_experts.GROUP}, not {odd[0]}={case[odd[0]]}" if odd else None


def _experts(case: Case) -> str | None:
    """Gathered rows of the sum are cut in 1,024 channels, or are narrower."""
    wide = case.number("H") > 1024 and case.number("H") % 1024
    return f"the kernel takes multiples of 1024, not H={case['H']}" if wide else vllm_cuda.unlaunched(case)


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "deep-gemm",
        {
            "fp8_linear": {
                "block": (128,), "x": ("float",), "dtype": ("bfloat16",), "out": ("bfloat16",), "gap": (0,),
            },
            "experts": {**vllm_cuda.EXPERTS, "dtype": ("bfloat16",), "out": ("bfloat16",), "quant": ("weights",)},
        },
        {"fp8_linear": _widths, "experts": _experts},
        {"fp8_linear": {"N": (128, 256), "H": (256, 3072)}, "experts": vllm_cuda.WIDE | vllm_cuda.WIDE_ACT},
    )
}  # fmt: skip


def absence() -> str | None:
    """Why it cannot be used here, or None."""
    if (reason := vllm_cuda.absence()) is not None:
        return reason
    if torch.cuda.get_device_capability() < (9, 0):
        return "it needs compute capability 9.0"
    return None if shutil.which("nvcc") else "it compiles its kernels, and nvcc is not on the PATH"


def provider() -> Provider:
    """DeepGEMM's dense product, and vLLM's experts on its grouped one."""
    vllm_cuda.loaded()
    return Provider(
        name="deep-gemm", device=DEVICE, functions=OFFERS["provider"].get, contract=CONTRACT, refuses=CAN["provider"]
    )


@cache
def engine() -> Any:
    """The package ``deep_gemm`` out of the wheel."""
    sys.path.append(str(vllm_cuda.loaded() / FOLDER))
    return importlib.import_module("deep_gemm")


class PackedFp8Linear(NamedTuple):
    """A weight and its scales in the checkpoint's layout, which is the engine's."""

    weight: Tensor
    scale: Tensor


def pack_fp8_linear(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> PackedFp8Linear:
    """Keep everything as it is."""
    return PackedFp8Linear(weight, scale)


def fp8_linear(
    x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """per_token_group_fp8_quant with scales by column, then fp8_gemm_nt."""
    group, largest = vllm_experts.GROUP, vllm_experts.LARGEST
    tokens, hidden = x.shape
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    stride = -(-tokens // ALIGNED) * ALIGNED
    scale = torch.empty_strided((tokens, hidden // group), (1, stride), dtype=torch.float32, device=x.device)
    torch.ops._C.per_token_group_fp8_quant(x, q, scale, group, vllm_experts.EPS, -largest, largest, False, True, True)
    y = torch.empty((tokens, packed.weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)
    engine().fp8_gemm_nt((q, scale), packed, y, disable_ue8m0_cast=True)
    return y


@cache
def glue() -> ModuleType:
    """vLLM's functions around the grouped products, with what they ask of its platform answered for sm_90."""
    package = vllm_cuda.loaded()
    return excerpt(
        {
            package / MOE / "utils.py": ("_count_expert_num_tokens", "count_expert_num_tokens"),
            package / MOE / "deep_gemm_utils.py": (
                "apply_expert_map", "_fwd_kernel_ep_scatter_1", "_fwd_kernel_ep_scatter_2", "ep_scatter",
                "_fwd_kernel_ep_gather", "ep_gather", "compute_aligned_M_and_alignment", "deepgemm_moe_permute",
                "deepgemm_unpermute_and_reduce",
            ),
            package / "model_executor/layers/quantization/utils/fp8_utils.py": (
                "_silu_mul_per_token_group_quant_fp8_colmajor", "silu_mul_per_token_group_quant_fp8_colmajor",
            ),
        },
        head=HEAD,
        given={
            "current_platform": SimpleNamespace(fp8_dtype=lambda: torch.float8_e4m3fn, is_fp8_fnuz=lambda: False),
            "is_deep_gemm_e8m0_used": lambda: False,
            "get_mk_alignment_for_contiguous_layout": lambda: [PADDED, PADDED],
            "round_up": lambda x, y: -(-x // y) * y,
        },
    )  # fmt: skip


def experts(x: Tensor, packed: vllm_experts.PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """DeepGemmExperts.apply."""
    w13, w2, w13_scale, w2_scale = packed
    q, scale = vllm_experts.quantised(x)
    q, scale, owners, place, _ = glue().deepgemm_moe_permute(q, scale, ids, w13.shape[0], None, None)
    product = engine().m_grouped_fp8_gemm_nt_contiguous
    gate_up = torch.empty((q.shape[0], w13.shape[1]), dtype=x.dtype, device=x.device)
    product((q, scale), (w13, w13_scale), gate_up, owners, disable_ue8m0_cast=True)
    act = glue().silu_mul_per_token_group_quant_fp8_colmajor(gate_up)
    down = torch.empty((q.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    product(act, (w2, w2_scale), down, owners, disable_ue8m0_cast=True)
    y = torch.empty_like(x)
    glue().deepgemm_unpermute_and_reduce(down, ids, weights, place, None, y)
    return y


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {
    "provider": {
        "pack_fp8_linear": pack_fp8_linear,
        "fp8_linear": fp8_linear,
        "pack_experts": vllm_experts.pack_experts,
        "experts": experts,
    }
}
