"""RMSNorm over the hidden size, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import on_device_of, power_of_two, registered
from minimax_m2.kernels.schema import rms_norm as rms_norm_schema


@triton.jit
def row_scale(squares, width, eps):
    """1 / rms of a row from its squares: both steps correctly rounded, unlike rsqrt."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), width) + eps))


@triton.jit
def rms_norm_kernel(x_ptr, weight_ptr, y_ptr, x_stride, H, width, eps, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    inside = h < H
    x = tl.load(x_ptr + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    y = x * row_scale(x * x, width, eps) * weight
    tl.store(y_ptr + t * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    num_tokens, H = x.shape
    block = power_of_two(H)
    with on_device_of(x):
        rms_norm_kernel[(num_tokens,)](
            x, weight, y, x.stride(0), H, float(H), eps, BLOCK=block, num_warps=warps_of(block)
        )


def warps_of(block: int) -> int:
    """Warps that share a row: 16 elements a thread, up to 16 warps."""
    return min(16, max(1, block // 512))


_call = registered("rms_norm", _launch)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Scale each row to root mean square 1, then each channel by its weight.

        y = x * rsqrt(mean(x^2) + eps) * weight

    x       [T, H] float32, bfloat16 or float16, row stride free
    weight  [H] dtype of x
    returns [T, H] dtype of x, contiguous

    One program a row; float32 in between; one rounding, of y.

    Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
    """
    rms_norm_schema.check(x, weight)

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _call(x, weight, eps, y)
    return y


def rms_norm_out(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
    """Do what ``rms_norm`` does, into ``y``, contiguous ``[T, H]``; it may be x itself."""
    rms_norm_schema.check(x, weight)
    rms_norm_schema.check_output("y", y, shape=tuple(x.shape), symbols="[T, H]", dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _call(x, weight, eps, y)
