"""Schema and host-side checks of ``router``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import router_gemm, routing

schema.define(
    "router(Tensor x, Tensor weight, Tensor? bias, int top_k, bool renormalize, bool softmax, float scale, float eps, "
    "Tensor? num_valid, Tensor(a!) weights, Tensor(b!) ids) -> ()"
)


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    scoring: str,
    indices_dtype: torch.dtype,
    num_valid: Tensor | None,
) -> None:
    """Raise what the host can know about the arguments of ``router``: those of its parts."""
    router_gemm.check(x, weight, None)
    routing.check_choice(
        bias, num_experts=weight.shape[0], device=x.device, top_k=top_k, scoring=scoring,
        indices_dtype=indices_dtype, num_valid=num_valid,
    )  # fmt: skip
