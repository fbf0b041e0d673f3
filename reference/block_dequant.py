"""Weights from quantised weights and the scales of their blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.linear import in_dtype


def block_dequant(
    q: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype, contract: Contract = EXACT
) -> Tensor:
    """Multiply each block by its scale: ``w[i, j] = q[i, j] * scale[i // rows, j // columns]``.

    q        [..., N, H] e4m3
    scale    [..., ceil(N/rows), ceil(H/columns)] float32; the checkpoint's name ``weight_scale_inv`` notwithstanding,
             it is multiplied
    returns  [..., N, H] dtype (a float64 q stays float64)

    Contract: ``out``, the weight: bfloat16 in vllm-ascend, which dequantises at load; None for engines that scale
    the accumulator instead (vLLM, SGLang block FP8, SGLang cpu).

    Raises ValueError if the scales' grid is not that of the blocks.
    """
    (rows, columns), (n, h) = block, q.shape[-2:]
    grid = (-(-n // rows), -(-h // columns))
    # The block is never guessed from the shapes: padded dimensions would give a plausible wrong one.
    if tuple(scale.shape[-2:]) != grid:
        raise ValueError(f"scale has grid {tuple(scale.shape[-2:])}; {n} x {h} in blocks of {block} needs {grid}")
    working = torch.promote_types(scale.dtype, torch.float64 if q.dtype == torch.float64 else dtype)
    expanded = scale.to(working).repeat_interleave(rows, -2)[..., :n, :]
    w = q.to(working) * expanded.repeat_interleave(columns, -1)[..., :h]
    return in_dtype(rounded(w, contract.out), dtype)


def dequantised_if_scaled(
    w: Tensor, scale: Tensor, *, block: tuple[int, int], dtype: torch.dtype, contract: Contract
) -> Tensor:
    """Bring a packed weight to the working dtype; an empty ``scale`` means that it is not quantised.

    Contract: ``dequantised``, block_dequant's ``out``.
    """
    if scale.numel() == 0:
        return w.to(dtype)
    return block_dequant(w, scale, block=block, dtype=dtype, contract=Contract({"out": contract.dequantised}))
