"""``qk_norm_rope_cache`` over ranks in one launch: programs exchange their sums of squares themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.gpu.mailbox import Mailbox
from minimax_m2.kernels.gpu.qk_norm_rope import launch_rows
from minimax_m2.kernels.schema import qk_norm_rope as qk_schema
from minimax_m2.kernels.schema import qk_norm_rope_cache as cache_schema

# The sums of q and of k.
WORDS = 2


def sum_qk_norm_rope_cache(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, k_cache: Tensor,
    v_cache: Tensor, slots: Tensor, mailbox: Mailbox, *, num_heads: int, num_kv_heads: int, head_dim: int,
    rotary_dim: int, q_width: int, k_width: int, eps: float, place: int, counted_kv_heads: int | None = None,
) -> Tensor:  # fmt: skip
    """Do what ``qk_norm_rope_cache`` does with the statistics of all ranks' heads.

    Only the first ``counted_kv_heads`` (None: all) enter the sum of k, so that replicas are counted once. Sums travel
    as float32 and are added in the order of the ranks. Everything else as in qk_norm_rope_cache; T up to the mailbox's
    rows. A token of which a rank has sent nothing when the mailbox's patience ends gets NaN.

    Raises ValueError or TypeError for shapes, dtypes, strides, devices and sizes outside the above.
    """
    cache_schema.check(
        qkv, None, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip
    counted = qk_schema.counted(counted_kv_heads, num_kv_heads=num_kv_heads)
    if qkv.shape[0] > mailbox.rows or mailbox.words != WORDS:
        raise ValueError(
            f"qkv has {qkv.shape[0]} rows of {WORDS} words; the mailbox takes up to {mailbox.rows} of {mailbox.words}; "
            "sum the statistics by a collective"
        )

    q = torch.empty((qkv.shape[0], num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)

    if qkv.shape[0] > 0:
        launch_rows(
            qkv, None, q_weight, k_weight, cos_sin, positions, slots, num_heads, num_kv_heads, head_dim, rotary_dim,
            q_width, k_width, eps, q, k_cache, v_cache, mailbox=mailbox, place=place, counted_kv_heads=counted,
        )  # fmt: skip
    return q
