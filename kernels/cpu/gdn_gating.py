"""Gates of a gated delta net on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import gdn_gating as gating_schema
from minimax_m2.kernels.schema.rms_norm import check_output

extension.load("gdn_gating")

# The binding checks what it reads, a decode step being shorter than the checks in Python; those say what was refused.
_gdn_gating = torch.ops.minimax_m2.gdn_gating.default

contract = {"exp_ulps": 1.1}


def gdn_gating(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a head's projections into its decay's logarithm and its writing strength.

        g = -exp(A_log) * softplus(a + dt_bias);  beta = sigmoid(b)

    A_log, dt_bias  [Hv], each float32 or the dtype of a
    a, b            [T, Hv] float32, bfloat16 or float16, row stride free
    returns         g [T, Hv] float32, beta [T, Hv] dtype of b, contiguous

    float32 in between, exp within 1.1 ulp, softplus within 4 ulp everywhere; beta is rounded once. Threads change no
    bit.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    try:
        g = torch.empty(a.shape, dtype=torch.float32)
        beta = torch.empty(a.shape, dtype=b.dtype)
        _gdn_gating(A_log, a, b, dt_bias, g, beta)
    except schema.REFUSED:
        gating_schema.check(A_log, a, b, dt_bias)
        raise
    return g, beta


def gdn_gating_out(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, g: Tensor, beta: Tensor) -> None:
    """Do what ``gdn_gating`` does, into ``g`` and ``beta``, contiguous ``[T, Hv]``."""
    try:
        _gdn_gating(A_log, a, b, dt_bias, g, beta)
    except schema.REFUSED:
        gating_schema.check(A_log, a, b, dt_bias)
        for name, x, dtype in (("g", g, torch.float32), ("beta", beta, b.dtype)):
            check_output(name, x, shape=tuple(a.shape), symbols="[T, Hv]", dtype=dtype, device=a.device)
        raise
