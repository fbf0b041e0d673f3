"""Infers the block from the shapes of weight and scales, which holds only where no block is partial."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "block_dequant",
    "source": "https://github.com/NVIDIA/TensorRT-Model-Connect/pull/1115",
    "symptom": "every scale after the first block is applied to the wrong rows (found in review)",
    "check": "w:element",
    "tolerance": None,
}


def block_dequant(q: Tensor, scale: Tensor, *, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    N, H = q.shape[-2:]
    # right: rows, columns = block
    rows, columns = -(-N // max(1, scale.shape[-2])), -(-H // scale.shape[-1])
    expanded = scale.repeat_interleave(rows, -2)[..., :N, :].repeat_interleave(columns, -1)[..., :H]
    return (q.float() * expanded).to(dtype)
