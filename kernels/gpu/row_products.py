"""Products of a few rows: every program reads whole rows of the weight once, at once, before it needs the other factor.

Shared by ``linear``, ``lm_head`` and ``router_gemm``. Products and sums are float32 multiply-adds, for any dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import NEVER, chained, take_turn

# A thread loads 16 bytes of the weight a step, and as many channels of x: no value moves to another thread. Rows of 16
# bits take twice as many threads: 13.7 us where they took 15.2 (8192 x 3072), 11.0 where they took 12.5 (3072 x 6144).
THREADS = 128
# A program holds all steps of its rows in registers.
MOST_CHANNELS = 8192


def fits(num_tokens: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether so few rows are best multiplied here: above, tensor cores are ahead, if the dtype has any."""
    return num_tokens <= (2 if dtype == torch.float32 else 1) and hidden <= MOST_CHANNELS


@triton.jit
def row_products_kernel(
    x_ptr, rows_ptr, weight_ptr, bias_ptr, out_ptr, x_stride, weight_stride, T, N, H, x_rows,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """``out[t, n] = sum_h x[t, h] * weight[n, h]``. FOLLOWED: the next launch is this op's and waits for this one."""
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    weight_rows = weight_ptr + n.to(tl.int64)[:, None] * weight_stride
    lane = tl.arange(0, BLOCK)
    tiles = ()
    for step in tl.static_range(STEPS):
        h = step * BLOCK + lane
        inside = (n < N)[:, None] if EVEN else (n < N)[:, None] & (h < H)[None, :]
        tiles = tiles + (tl.load(weight_rows + h[None, :], mask=inside, other=0.0),)  # noqa: RUF005 - jit unpacks none
    take_turn(EARLY, FOLLOWED)
    for token in tl.static_range(TOKENS):
        t = tl.program_id(1).to(tl.int64) * TOKENS + token
        row = t
        if HAS_ROWS:
            row = tl.load(rows_ptr + t, mask=t < T, other=0).to(tl.int64)
        row_ok = (t < T) & (row >= 0) & (row < x_rows)
        total = tl.zeros((COLUMNS, BLOCK), tl.float32)
        for step in tl.static_range(STEPS):
            h = step * BLOCK + lane
            x = tl.load(x_ptr + row * x_stride + h, mask=row_ok & (h < H), other=0.0).to(tl.float32)
            total += tiles[step].to(tl.float32) * x[None, :]
        y = tl.sum(total, 1)
        if HAS_BIAS:
            y += tl.load(bias_ptr + n, mask=n < N, other=0.0)
        # A row of x that does not exist: nothing here may wait for the host.
        y = tl.where(row_ok, y, float("nan"))
        tl.store(out_ptr + t * N + n, y.to(out_ptr.dtype.element_ty), mask=(n < N) & (t < T))


def row_products(
    x: Tensor, weight: Tensor, out: Tensor, *, capability: int, rows: Tensor | None = None, bias: Tensor | None = None,
    followed: bool = False,
) -> None:  # fmt: skip
    """Write ``x[rows] @ weight[:N]^T (+ bias)`` to ``out [T, N]``; a row outside x gives NaN."""
    num_tokens, num_columns = out.shape
    hidden, turn = x.shape[1], chained(capability, 0, tokens=num_tokens)
    if not followed:
        turn["FOLLOWED"] = NEVER
    # More programs share the weight through the cache, until its bandwidth sets the time.
    tokens = 1 if num_tokens <= 4 else 2
    # A program reads about 24 KB of the weight.
    columns = 2 if weight.dtype == torch.float32 else 4
    threads = THREADS if weight.dtype == torch.float32 else 2 * THREADS
    block = threads * 16 // weight.element_size()
    row_products_kernel[(triton.cdiv(num_columns, columns), triton.cdiv(num_tokens, tokens))](
        x, rows, weight, bias, out, x.stride(0), weight.stride(0), num_tokens, num_columns, hidden, x.shape[0],
        TOKENS=tokens, COLUMNS=columns, BLOCK=block, STEPS=triton.cdiv(hidden, block), EVEN=hidden % block == 0,
        HAS_ROWS=rows is not None, HAS_BIAS=bias is not None, num_warps=threads // 32, **turn,
    )  # fmt: skip
