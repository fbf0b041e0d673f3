"""RMSNorm over the hidden size, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import rms_norm as rms_norm_schema

extension.load("rms_norm")

# The binding checks what it reads; the checks in Python say what was refused.
_rms_norm = torch.ops.minimax_m2.rms_norm.default


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Scale each row to root mean square 1, then each channel by its weight.

        y = x * rsqrt(mean(x^2) + eps) * weight

    x       [T, H] float32, bfloat16 or float16, row stride free
    weight  [H] dtype of x
    returns [T, H] dtype of x, contiguous

    float32 in between, the mean in lanes; one rounding, of y. Threads change no bit.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    try:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _rms_norm(x, weight, eps, y)
    except schema.REFUSED:
        rms_norm_schema.check(x, weight)
        raise
    return y


def rms_norm_out(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
    """Do what ``rms_norm`` does, into ``y``, contiguous ``[T, H]``; it may be x itself."""
    try:
        _rms_norm(x, weight, eps, y)
    except schema.REFUSED:
        rms_norm_schema.check(x, weight)
        rms_norm_schema.check_output("y", y, shape=tuple(x.shape), symbols="[T, H]", dtype=x.dtype, device=x.device)
        raise
