"""Multiply by a dense weight on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import linear as linear_schema

extension.load("linear")


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiply by a weight stored one row per output: ``y = x @ weight^T``.

    x        [T, H] bfloat16, float16 or float32, row stride free
    weight   [N, H], dtype of x, row stride free
    returns  [T, N], dtype of x unless out_dtype

    Sums are float32, in one order whatever T and the number of threads, and rounded once.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    linear_schema.check(x, weight, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], weight.shape[0]), dtype=out_dtype or x.dtype)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.linear(x, weight, out)
    return out


def linear_out(x: Tensor, weight: Tensor, out: Tensor, *, out_dtype: torch.dtype | None = None) -> None:
    """Do what ``linear`` does, into ``out``, contiguous ``[T, N]``."""
    linear_schema.check(x, weight, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.linear(x, weight, out)
