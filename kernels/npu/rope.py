"""Rotate queries and keys by their positions on an NPU: a program many tokens."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import rope as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.qk_norm_rope import TILE
from minimax_m2.kernels.npu.qk_norm_rope_rows import rope_kernel


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


rope, rope_out = launched.functions(registered("rope", _launch))
