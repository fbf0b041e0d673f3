"""SwiGLU and quantisation of its result, fused."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from minimax_m2.reference.block_quant import LARGEST_E4M3, group_scale, quantised, quotient
from minimax_m2.reference.contract import EXACT, Contract
from minimax_m2.reference.linear import in_dtype
from minimax_m2.reference.swiglu import swiglu

LARGEST_INT8 = 127.0


def swiglu_quant(
    gate_up: Tensor, *, group: int = 128, quant: str = "e4m3", contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Quantise ``swiglu(gate_up)`` in groups of a row; ``group >= I`` is one scale a row.

        scale = max(absmax(group), 1e-10) / (448 or 127);  q = round(y / scale)

    gate_up  [T, 2*I], gate first
    returns  q [T, I] e4m3 or int8 (float64 for a float64 gate_up), scale [T, ceil(I/group)] float32

    Contract: the fields of swiglu and block_quant (``out``: y before it is quantised), and
        ties  of int8: "even" (None): SGLang cpu; "up", floor(x + 1/2): sgl-kernel-npu swiglu_quant.py.

    Raises ValueError for another ``quant``.
    """
    if quant not in ("e4m3", "int8"):
        raise ValueError(f"quant={quant!r} is unknown; use 'e4m3' or 'int8'")
    y = swiglu(gate_up, contract=contract)
    if quant == "e4m3":
        scale = group_scale(y, group=group, largest=LARGEST_E4M3, contract=contract)
        return in_dtype(quantised(y, scale, group=group, contract=contract), torch.float8_e4m3fn), scale
    scale = group_scale(y, group=group, largest=LARGEST_INT8, contract=contract)
    ratio = quotient(y, scale, group=group, contract=contract)
    return in_dtype(rounded_int8(ratio, contract.ties), torch.int8), scale


def rounded_int8(x: Tensor, ties: str | None) -> Tensor:
    """Round to an integer in -127..127 and keep the working dtype; halves go to even or, for "up", upwards."""
    if has_torch_function_unary(x):
        return handle_torch_function(rounded_int8, (x,), x, ties)
    return (torch.floor(x + 0.5) if ties == "up" else torch.round(x)).clamp(-LARGEST_INT8, LARGEST_INT8)
