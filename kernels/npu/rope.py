"""Rotate queries and keys by their positions on an NPU: a program many tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.npu.launch import power_of_two, programs, registered
from minimax_m2.kernels.npu.qk_norm_rope import TILE
from minimax_m2.kernels.npu.qk_norm_rope_rows import rope_kernel
from minimax_m2.kernels.schema import rope as rope_schema


def _launch(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, rotary_dim: int, q_out: Tensor, k_out: Tensor
) -> None:
    rows, Hq, D = q.shape
    Hk, half = k.shape[1], rotary_dim // 2
    cos, sin = cos_sin[:, :half], cos_sin[:, half:]
    rope_kernel[programs(rows, q)](
        q, k, cos, sin, positions, q_out, k_out, rows, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        cos.stride(0), sin.stride(0), cos.shape[0], Hq, Hk, Q_TILES=-(-Hq // TILE), K_TILES=-(-Hk // TILE), TILE=TILE,
        D=D, HALF=half, TURN=power_of_two(half), REST=power_of_two(D - rotary_dim),
    )  # fmt: skip


_call = registered("rope", _launch)


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Rotate the pairs ``(j, j + R/2)``, j < R/2, of every head; channels from R on pass through.

        y[j] = x[j] * cos - x[j + R/2] * sin;  y[j + R/2] = x[j + R/2] * cos + x[j] * sin

    q, k       [T, Hq, D], [T, Hk, D] float32, bfloat16 or float16; strides of tokens and heads free; D up to 512
    cos_sin    [P, R] float32, bfloat16 or float16, R/2 cosines then R/2 sines, row stride free
    positions  [T] int32 or int64; a token whose position is outside the table gets NaN
    returns    q, k, contiguous, shapes and dtypes kept

    Computed in float32 and rounded once.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    rope_schema.check(q, k, cos_sin, positions, rotary_dim=rotary_dim)

    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)

    if q.shape[0] > 0:
        _call(q, k, cos_sin, positions, rotary_dim, q_out, k_out)
    return q_out, k_out


def rope_out(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, q_out: Tensor, k_out: Tensor, *, rotary_dim: int
) -> None:
    """Do what ``rope`` does, into ``q_out`` and ``k_out``, contiguous and apart from q and k."""
    rope_schema.check(q, k, cos_sin, positions, rotary_dim=rotary_dim)
    rope_schema.check_output("q_out", q_out, like=q, shape=tuple(q.shape), symbols="[T, Hq, D]")
    rope_schema.check_output("k_out", k_out, like=k, shape=tuple(k.shape), symbols="[T, Hk, D]")

    if q.shape[0] > 0:
        _call(q, k, cos_sin, positions, rotary_dim, q_out, k_out)
