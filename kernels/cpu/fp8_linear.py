"""Multiply by an e4m3 weight on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import fp8_linear as fp8_linear_schema
from minimax_m2.kernels.schema import linear as linear_schema

extension.load("fp8_linear")


class PackedFp8Linear(NamedTuple):
    """A weight in the checkpoint's layout."""

    weight: Tensor  # [N, H] e4m3
    scale: Tensor  # [ceil(N/rows), ceil(H/columns)] float32
    block: Tensor  # [2] int64: rows, columns


def pack_fp8_linear(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> PackedFp8Linear:
    """Keep ``weight [N, H]`` e4m3 and ``scale`` float32 as the checkpoint has them; nothing is copied.

    Raises ValueError or TypeError unless the scales' grid is that of the blocks.
    """
    fp8_linear_schema.check_pack(weight, scale, block=block)
    return PackedFp8Linear(weight, scale, torch.tensor(block))


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
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], packed.weight.shape[0]), dtype=dtype)

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
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], packed.weight.shape[0]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.fp8_linear(x, *packed, x_scale, out)
