"""Products whose kernel may quantise the activations first: to e4m3 by group, or to int8 by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from minimax_m2.reference.block_dequant import dequantised_if_scaled
from minimax_m2.reference.block_quant import SMALLEST_ABSMAX, quotient, requantised
from minimax_m2.reference.contract import Contract, rounded
from minimax_m2.reference.swiglu_quant import LARGEST_INT8, rounded_int8


class Operand(NamedTuple):
    """Rows as a product sees them."""

    values: Tensor  # [T, H], or integers in the working dtype
    scale: Tensor | None = None  # [T, 1] of integers

    def rows(self, t: Tensor) -> Operand:
        """Rows ``t`` of it."""
        return Operand(self.values[t], None if self.scale is None else self.scale[t])


def operand(x: Tensor, w: Tensor, *, group: int, contract: Contract) -> Operand:
    """What the contract's ``activation`` leaves of ``x [T, H]`` before it meets ``w``.

    "e4m3"  groups are requantised: block_quant's fields
    "int8"  of int8 weights only: ``scale = max(absmax(row), 1e-10) / 127;  q = round(x / scale)``; block_quant's
            ``scale, reciprocal``, swiglu_quant's ``ties``, and ``smallest`` for 1e-10: 1e-7 in SGLang cpu (vec.h)
    "none"  x
    """
    if contract.activation == "e4m3":
        return Operand(requantised(x, group=group, contract=contract))
    if contract.activation != "int8" or w.dtype != torch.int8:
        return Operand(x)
    absmax = x.to(torch.promote_types(x.dtype, torch.float32)).abs().amax(-1, keepdim=True)
    scale = rounded(absmax.clamp(min=contract.smallest or SMALLEST_ABSMAX) / LARGEST_INT8, contract.scale)
    return Operand(rounded_int8(quotient(x, scale, group=x.shape[-1], contract=contract), contract.ties), scale)


def product(rows: Operand, w: Tensor, w_scale: Tensor, *, block: tuple[int, int], dtype: torch.dtype,
            contract: Contract) -> Tensor:  # fmt: skip
    """Multiply rows by a weight: ``y = rows @ (w * w_scale)^T``, of integers ``(q @ w^T) * scale * w_scale^T``.

    w        [N, H], w_scale as block_dequant wants it or empty; for integers int8 and [N, 1]
    returns  [T, N]

    Contract: ``dequantised``, the scaled weight.
    """
    if rows.scale is not None:
        return whole_product(rows.values, w) * rows.scale * w_scale.mT
    return rows.values @ dequantised_if_scaled(w, w_scale, block=block, dtype=dtype, contract=contract).mT


def whole_product(q: Tensor, w: Tensor) -> Tensor:
    """Take ``q @ w^T`` of integers, whose sums an int32 holds: no order of summation loses anything.

    The result is rounded to the working dtype once.
    """
    if has_torch_function_unary(q):
        return handle_torch_function(whole_product, (q,), q, w)
    return (q.double() @ w.double().mT).to(q.dtype)
