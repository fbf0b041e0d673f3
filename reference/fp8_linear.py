"""A dense layer whose weight is e4m3 with one scale a block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.reference.block_dequant import block_dequant, dequantised_if_scaled
from minimax_m2.reference.block_quant import requantised
from minimax_m2.reference.contract import EXACT, Contract
from minimax_m2.reference.linear import linear


class PackedFp8Linear(NamedTuple):
    """A weight in the checkpoint's layout."""

    weight: Tensor  # [N, H] e4m3
    scale: Tensor  # [ceil(N/rows), ceil(H/columns)] float32
    block: Tensor  # [2] int64: rows, columns; the columns are also the group of quantised activations


def pack_fp8_linear(
    weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128), contract: Contract = EXACT
) -> PackedFp8Linear:
    """Keep ``weight [N, H]`` and ``scale`` as the checkpoint has them (``weight``, ``weight_scale_inv``)."""
    return PackedFp8Linear(weight, scale, torch.tensor(block))


def fp8_linear(
    x: Tensor,
    packed: PackedFp8Linear,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    contract: Contract = EXACT,
) -> Tensor:
    """Multiply by a dequantised weight: ``y = x @ (weight * scale)^T``.

    x        [T, H]; e4m3 with x_scale [T, ceil(H/group)], then the working dtype is float32
    returns  [T, N], working dtype unless out_dtype

    Contract:
        dequantised  the weight after scaling: bfloat16 in vllm-ascend, at load; else None.
        activation   "e4m3": x is quantised per group first (vLLM, SGLang, DeepGEMM W8A8), with block_quant's
                     ``scale, reciprocal`` and its ``scale_format`` as a field; "none": weight only, SGLang cpu.
        out          the result.
    """
    block = (int(packed.block[0]), int(packed.block[1]))
    if x_scale is not None:
        x = block_dequant(x, x_scale, block=(1, block[1]), dtype=torch.float32)
    elif contract.activation == "e4m3":
        x = requantised(x, group=block[1], contract=contract)
    weight = dequantised_if_scaled(packed.weight, packed.scale, block=block, dtype=x.dtype, contract=contract)
    return linear(x, weight, out_dtype=out_dtype, contract=contract)
