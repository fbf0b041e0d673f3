"""A dense layer whose weight is e4m3 with one scale a block, on a GPU: activations are quantised too (W8A8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.block_quant import block_quant
from minimax_m2.kernels.gpu.launch import capability, converts_e4m3, on_device_of, power_of_two, registered
from minimax_m2.kernels.gpu.scaled_tile import channels, evenly, factor, quantised_rows, scaled, weight_tile
from minimax_m2.kernels.schema import fp8_linear as fp8_linear_schema
from minimax_m2.kernels.schema import linear as linear_schema

contract = {"activation": "e4m3", "reciprocal": "float32", "tensor_core": "e4m3"}

# Up to so many tokens a program quantises its own activations; above, a launch of its own is cheaper than repeating it.
QUANTISED_IN_PLACE = 16


class PackedFp8Linear(NamedTuple):
    """A weight in the checkpoint's layout."""

    weight: Tensor  # [N, H] e4m3
    scale: Tensor  # [ceil(N/rows), ceil(H/columns)] float32
    block: Tensor  # [2] int64 on the host: rows, columns


class Tiling(NamedTuple):
    """Tokens and output columns of a program, its warps and the loads in flight."""

    tokens: int
    columns: int
    warps: int
    stages: int


def tiling(num_tokens: int, num_columns: int, hardware: bool) -> Tiling:
    """Narrow tiles where the weight's bytes set the time and many programs must stream them; wide ones else.

    Without e4m3 tensor cores (``hardware``) codes are decoded in registers, which leaves room for 32 rows.
    """
    if num_tokens <= 16:
        return Tiling(16, 32 if num_columns <= 4096 else 64, 4, 5)
    if num_tokens <= 64 or not hardware:
        return Tiling(min(32 if not hardware else 64, power_of_two(num_tokens)), 64, 4, 4)
    return Tiling(128, 128, 8, 4) if num_tokens > 512 else Tiling(64, 64, 4, 4)


@triton.jit
def fp8_linear_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, out_ptr, x_stride, x_scale_stride, weight_stride, scale_stride,
    T, N, H, rows, columns, STEPS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    CODED: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr, ONE_SCALE: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Sum over groups of input channels; codes multiply exactly, both scales meet the float32 sum of a group."""
    lane = tl.arange(0, COLUMNS)
    first = tl.program_id(0).to(tl.int64) * COLUMNS
    n = first + lane
    t = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    token_ok, column_ok = t < T, n < N
    weight_ptr += first * weight_stride
    y = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for step in tl.range(STEPS):
        start = step * columns
        w = weight_tile(weight_ptr, lane, column_ok, weight_stride, start, columns, H, BLOCK, EVEN, FULL)
        if CODED:
            q = channels(x_ptr, t, token_ok, x_stride, start, columns, H, BLOCK, EVEN)
            q_scale = tl.load(x_scale_ptr + t * x_scale_stride + step, mask=token_ok, other=0.0)
        else:
            q, q_scale = quantised_rows(x_ptr, t, token_ok, x_stride, start, columns, H, BLOCK, EVEN, HARDWARE)
        product = tl.dot(factor(q, HARDWARE), factor(w, HARDWARE))
        y += scaled(product, q_scale, scale_ptr, n, column_ok, rows, scale_stride, step, ONE_SCALE)
    tl.store(
        out_ptr + t[:, None] * N + n[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=token_ok[:, None] & column_ok[None, :],
    )


def _launch(x: Tensor, weight: Tensor, scale: Tensor, block: Tensor, x_scale: Tensor | None, out: Tensor) -> None:
    rows, columns = int(block[0]), int(block[1])
    (num_tokens, hidden), num_columns = x.shape, weight.shape[0]
    if x_scale is None and num_tokens > QUANTISED_IN_PLACE:
        x, x_scale = block_quant(x, group=columns)
    coded = x_scale is not None
    hardware = converts_e4m3(capability(x))
    cut = tiling(num_tokens, num_columns, hardware)
    grid = (triton.cdiv(num_columns, cut.columns), triton.cdiv(num_tokens, cut.tokens))
    with on_device_of(x):
        fp8_linear_kernel[grid](
            x.view(torch.uint8) if coded else x, x_scale, weight.view(torch.uint8), scale, out, x.stride(0),
            0 if x_scale is None else x_scale.stride(0), weight.stride(0), scale.stride(0), num_tokens, num_columns,
            hidden, rows, columns, STEPS=triton.cdiv(hidden, columns), TOKENS=cut.tokens, COLUMNS=cut.columns,
            # tl.dot adds at least 32 products.
            BLOCK=max(32, power_of_two(columns)), CODED=coded, EVEN=evenly(hidden, columns),
            FULL=num_columns % cut.columns == 0, ONE_SCALE=rows % cut.columns == 0, HARDWARE=hardware,
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip


_call = registered("fp8_linear", _launch)


def pack_fp8_linear(weight: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128)) -> PackedFp8Linear:
    """Keep ``weight [N, H]`` e4m3 and ``scale`` float32 as the checkpoint has them; nothing is copied.

    Raises ValueError or TypeError unless the scales' grid is that of the blocks.
    """
    fp8_linear_schema.check_pack(weight, scale, block=block)
    return PackedFp8Linear(weight, scale, torch.tensor(block))


def fp8_linear(
    x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply by a dequantised weight: ``y = quantised(x) @ (weight * scale)^T``.

    x        [T, H] bfloat16, float16 or float32, or float8_e4m3fn with x_scale [T, ceil(H/columns)] float32
    packed   from ``pack_fp8_linear``
    returns  [T, N], dtype of x (float32 for e4m3) unless out_dtype

    Activations are quantised as block_quant does, in groups of the weight's block columns. Codes multiply exactly,
    scales meet the float32 sums of each group of inputs, and a result is rounded once.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)

    out = torch.empty((x.shape[0], packed.weight.shape[0]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, *packed, x_scale, out)
    return out


def fp8_linear_out(
    x: Tensor, packed: PackedFp8Linear, out: Tensor, *, x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Do what ``fp8_linear`` does, into ``out``, contiguous ``[T, N]``."""
    dtype = fp8_linear_schema.check(x, packed, x_scale=x_scale, out_dtype=out_dtype)
    linear_schema.check_output(out, shape=(x.shape[0], packed.weight.shape[0]), dtype=dtype, device=x.device)

    if x.shape[0] > 0:
        _call(x, *packed, x_scale, out)
