"""RMSNorm over the hidden size, on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import rms_norm as launched


@triton.jit
def row_scale(squares, width, eps):
    """1 / rms of a row from its squares: both steps correctly rounded, unlike rsqrt."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), width) + eps))


@triton.jit
def rms_norm_kernel(
    x_ptr, weight_ptr, y_ptr, x_stride, H, width, eps, BLOCK: tl.constexpr, EARLY: tl.constexpr,
    FOLLOWED: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    inside = h < H
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    take_turn(EARLY, FOLLOWED)
    x = tl.load(x_ptr + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    y = x * row_scale(x * x, width, eps) * weight
    tl.store(y_ptr + t * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    num_tokens, H = x.shape
    block = power_of_two(H)
    warps = warps_of(block)
    with on_device_of(x):
        rms_norm_kernel[(num_tokens,)](
            x, weight, y, x.stride(0), H, float(H), eps, BLOCK=block, num_warps=warps,
            **chained(capability(x), num_tokens * warps, tokens=num_tokens),
        )  # fmt: skip


def warps_of(block: int) -> int:
    """Warps that share a row: 16 elements a thread, up to 16 warps."""
    return min(16, max(1, block // 512))


rms_norm, rms_norm_out = launched.functions(registered("rms_norm", _launch))
