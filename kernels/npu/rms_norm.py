"""RMSNorm over the hidden size, on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.npu.launch import power_of_two, programs, registered
from minimax_m2.kernels.npu.rms_norm_rows import rms_norm_kernel
from minimax_m2.kernels.schema import rms_norm as rms_norm_schema

# Rows are held whole, in float32; more does not fit the unified buffer beside the copies under way.
WIDEST, LANES = 4096, 32


def block_of(H: int) -> int:
    """Channels of a row as it is held, a multiple of the lanes in which it is summed."""
    return max(LANES, power_of_two(H))


def check_width(H: int) -> None:
    """Raise ValueError for a row that no program can hold."""
    schema.expect_range("H", H, 0, WIDEST, "a program holds a row in the unified buffer; MiniMax-M2 has 3072")


def _launch(x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    rows, H = x.shape
    rms_norm_kernel[programs(rows, x)](
        x, weight, y, rows, x.stride(0), H, float(H), eps, LANES=LANES, BLOCK=block_of(H)
    )


_call = registered("rms_norm", _launch)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Scale each row to root mean square 1, then each channel by its weight.

        y = x * rsqrt(mean(x^2) + eps) * weight

    x       [T, H] float32, bfloat16 or float16, row stride free
    weight  [H] dtype of x
    returns [T, H] dtype of x, contiguous

    A program many rows; float32 in between; one rounding, of y; H up to 4096.

    Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
    """
    rms_norm_schema.check(x, weight)
    check_width(x.shape[1])

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _call(x, weight, eps, y)
    return y


def rms_norm_out(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
    """Do what ``rms_norm`` does, into ``y``, contiguous ``[T, H]``; it may be x itself."""
    rms_norm_schema.check(x, weight)
    check_width(x.shape[1])
    rms_norm_schema.check_output("y", y, shape=tuple(x.shape), symbols="[T, H]", dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _call(x, weight, eps, y)
