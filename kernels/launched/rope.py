"""Rotate queries and keys by their positions, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import rope as rope_schema


def functions(launch: Launch) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., None]]:
    """``rope``, ``rope_out``."""

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
            launch(q, k, cos_sin, positions, rotary_dim, q_out, k_out)
        return q_out, k_out

    def rope_out(
        q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, q_out: Tensor, k_out: Tensor, *, rotary_dim: int
    ) -> None:
        """Do what ``rope`` does, into ``q_out`` and ``k_out``, contiguous and apart from q and k."""
        rope_schema.check(q, k, cos_sin, positions, rotary_dim=rotary_dim)
        rope_schema.check_output("q_out", q_out, like=q, shape=tuple(q.shape), symbols="[T, Hq, D]")
        rope_schema.check_output("k_out", k_out, like=k, shape=tuple(k.shape), symbols="[T, Hk, D]")

        if q.shape[0] > 0:
            launch(q, k, cos_sin, positions, rotary_dim, q_out, k_out)

    return rope, rope_out
