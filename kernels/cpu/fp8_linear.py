"""Multiply by an e4m3 weight on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.cpu.column_packing import blocks, every_row, scale_blocks
from minimax_m2.kernels.schema import fp8_linear as fp8_linear_schema
from minimax_m2.kernels.schema import linear as linear_schema

extension.load("fp8_linear")


class PackedFp8Linear(NamedTuple):
    """A weight in blocks of 64 outputs, the input dimension outermost, two inputs of an output side by side."""

    weight: Tensor  # [ceil(N/64), ceil(H/2), 64, 2] e4m3
    scale: Tensor  # [ceil(N/64), ceil(H/columns), 64 or 2] float32, a scale an output or a half of the block
    extent: Tensor  # [0, N, H, columns]: holds nothing, its shape keeps the sizes that padding hides


def pack_fp8_linear(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> PackedFp8Linear:
    """Lay the weight out once for every later call.

    weight  [N, H] e4m3, row stride free
    scale   [ceil(N/rows), ceil(H/columns)] float32
    block   (rows, columns); columns must be even

    Raises ValueError or TypeError for shapes, dtypes and blocks outside the above.
    """
    fp8_linear_schema.check_pack(weight, scale, block=block)
    fp8_linear_schema.check_pairs(block)

    rows, columns = block
    order = every_row(weight.shape[0])
    return PackedFp8Linear(
        blocks(weight[None], order)[0],
        scale_blocks(scale[None], order // rows)[0],
        torch.empty(0, *weight.shape, columns),
    )


def fp8_linear(
    x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply by a dequantised weight: ``y = x @ (weight * scale)^T``.

    x        [T, H] bfloat16, float16 or float32, or float8_e4m3fn with x_scale [T, ceil(H/columns)] float32
    packed   from ``pack_fp8_linear``
    returns  [T, N], dtype of x (float32 for e4m3) unless out_dtype

    The activations are used as they come. Codes multiply exactly, scales meet the float32 sums of each group of inputs,
    and a result is rounded once. The order of a sum hangs on neither T nor the number of threads.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    dtype = fp8_linear_schema.check_blocks(x, packed, x_scale=x_scale, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], packed.extent.shape[1]), dtype=dtype)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.fp8_linear(x, *packed, x_scale, out)
    return out


def fp8_linear_out(
    x: Tensor,
    packed: PackedFp8Linear,
    out: Tensor,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> None:
    """Do what ``fp8_linear`` does, into ``out``, contiguous ``[T, N]``."""
    dtype = fp8_linear_schema.check_blocks(x, packed, x_scale=x_scale, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], packed.extent.shape[1]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.fp8_linear(x, *packed, x_scale, out)
