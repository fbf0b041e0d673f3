"""Normalise q and k over their full widths and rotate them, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import qk_norm_rope as qk_schema


def functions(
    launch: Launch, launch_sums: Launch
) -> tuple[
    Callable[..., Tensor], Callable[..., None], Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., None]
]:
    """``qk_sum_squares``, ``qk_sum_squares_out``, ``qk_norm_rope``, ``qk_norm_rope_out``."""

    def qk_sum_squares(
        qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, counted_kv_heads: int | None = None
    ) -> Tensor:
        """Sum the squares of each token's local q and k channels: ``[T, 2]`` float32, q then k.

        qkv  [T, (Hq + 2*Hk)*D] float32, bfloat16 or float16, row stride free

        Only the first ``counted_kv_heads`` (None: all) enter the sum of k. Summed in float32.

        Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
        """
        qk_schema.check_qkv(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        counted = qk_schema.counted(counted_kv_heads, num_kv_heads=num_kv_heads)

        stats = torch.empty((qkv.shape[0], 2), dtype=torch.float32, device=qkv.device)

        if qkv.shape[0] > 0:
            launch_sums(qkv, num_heads, head_dim, counted, stats)
        return stats

    def qk_sum_squares_out(
        qkv: Tensor, stats: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int,
        counted_kv_heads: int | None = None,
    ) -> None:  # fmt: skip
        """Do what ``qk_sum_squares`` does, into ``stats``, contiguous ``[T, 2]`` float32."""
        qk_schema.check_qkv(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        qk_schema.check_stats(stats, num_tokens=qkv.shape[0], device=qkv.device)
        counted = qk_schema.counted(counted_kv_heads, num_kv_heads=num_kv_heads)

        if qkv.shape[0] > 0:
            launch_sums(qkv, num_heads, head_dim, counted, stats)

    def qk_norm_rope(
        qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
        num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Normalise q and k over their full widths, split heads, rotate the first R channels of each; copy v.

            q' = rope(q * rsqrt(stats_q / q_width + eps) * q_weight), k' likewise, v' = v

        qkv                 [T, (Hq + 2*Hk)*D] float32, bfloat16 or float16, row stride free; D up to 512
        stats               [T, 2] float32, sums of squares over all ranks; None: summed here, this rank is the only one
        q_weight, k_weight  [Hq*D], [Hk*D], both float32 or both of qkv's dtype
        cos_sin, positions  as in rope; a token whose position is outside the table gets NaN
        q_width, k_width    true widths of the model, whatever is padded or replicated
        returns             q [T, Hq, D], k, v [T, Hk, D], contiguous, dtype of qkv

        Computed in float32 and rounded once.

        Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
        """
        qk_schema.check(
            qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
            head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
        )  # fmt: skip

        num_tokens = qkv.shape[0]
        q = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
        k = torch.empty((num_tokens, num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
        v = torch.empty((num_tokens, num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device)

        if num_tokens > 0:
            launch(
                qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads, num_kv_heads, head_dim, rotary_dim,
                q_width, k_width, eps, q, k, v,
            )  # fmt: skip
        return q, k, v

    def qk_norm_rope_out(
        qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
        q: Tensor, k: Tensor, v: Tensor, *,
        num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    ) -> None:  # fmt: skip
        """Do what ``qk_norm_rope`` does, into ``q``, ``k`` and ``v``, contiguous and apart from qkv."""
        qk_schema.check(
            qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
            head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
        )  # fmt: skip
        qk_schema.check_outputs(qkv, q, k, v, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)

        if qkv.shape[0] > 0:
            launch(
                qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads, num_kv_heads, head_dim, rotary_dim,
                q_width, k_width, eps, q, k, v,
            )  # fmt: skip

    return qk_sum_squares, qk_sum_squares_out, qk_norm_rope, qk_norm_rope_out
