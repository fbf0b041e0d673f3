"""Multiply by a dense weight on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minimax_m2.kernels.gpu.dense_tile import dense_product
from minimax_m2.kernels.gpu.launch import registered
from minimax_m2.kernels.gpu.row_products import fits
from minimax_m2.kernels.schema import linear as linear_schema


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """A few rows meet float32 multiply-adds, more of them tensor cores, as far as their dtype has any."""
    return tensor_core(case["T"], case["H"], case["dtype"])


def tensor_core(num_tokens: int, hidden: int, dtype: str) -> dict[str, Any]:
    """The contract's field ``tensor_core`` of a dense product."""
    alone = dtype == "float32" or fits(num_tokens, hidden, getattr(torch, dtype))
    return {"tensor_core": None if alone else "bfloat16"}


def _launch(x: Tensor, weight: Tensor, out: Tensor) -> None:
    dense_product(x, weight, None, out)


_call = registered("linear", _launch)


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiply by a weight stored one row per output: ``y = x @ weight^T``.

    x        [T, H] bfloat16, float16 or float32, row stride free
    weight   [N, H], dtype of x, row stride free
    returns  [T, N], dtype of x unless out_dtype

    Sums are float32, in an order that hangs on the shapes alone, and rounded once; float32 factors are not rounded.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    linear_schema.check(x, weight, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, weight, out)
    return out


def linear_out(x: Tensor, weight: Tensor, out: Tensor, *, out_dtype: torch.dtype | None = None) -> None:
    """Do what ``linear`` does, into ``out``, contiguous ``[T, N]``."""
    linear_schema.check(x, weight, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, weight, out)
