"""What the suites launch on real ranks: the operator of SGLang and vllm-ascend, interpreted, over the ranks of gloo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.interpreter import let_loops_end_at_scalars
from minimax_m2.kernels.npu.qk_norm_rope import qk_norm_rope, split_qkv_tp_rmsnorm_rope
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.sharding import Cut, cut, head_cut, heads, joined

# Rotated in part; 4 ranks pad three heads of each group to four, 3 ranks one group of two with a group of zeros.
HEADS, KV_HEADS, D, R, TOKENS, EPS = 6, 2, 16, 8, 5, 1e-6


def sixteenths(*shape: int) -> Tensor:
    """Numbers whose squares, and all sums of them here, float32 holds exactly: in any order they give the same bits."""
    return ((torch.arange(torch.Size(shape).numel()) * 37 + 11) % 61 - 30).reshape(shape) / 16


def split(communicator: Communicator, widths: str = "true") -> int:
    """How many numbers of all ranks differ from one rank's.

    widths  ``true``, or ``local`` as the engines' operators have it: padding and replicas counted in
    """
    let_loops_end_at_scalars()
    width = (HEADS + 2 * KV_HEADS) * D
    qkv, table = sixteenths(TOKENS, width), sixteenths(TOKENS, R + 3)[:, :R]
    q_weight, k_weight = 1 + sixteenths(HEADS * D) / 8, 1 + sixteenths(KV_HEADS * D) / 8
    expected = qk_norm_rope(
        qkv, None, q_weight, k_weight, table, torch.arange(TOKENS), num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=D, rotary_dim=R, q_width=HEADS * D, k_width=KV_HEADS * D, eps=EPS,
    )  # fmt: skip

    own = heads(HEADS, KV_HEADS, tp=communicator.size, rank=communicator.rank)
    parts: list[Cut] = [
        head_cut(which, head_dim=D, offset=first * D)
        for which, first in ((own.query, 0), (own.kv, HEADS), (own.kv, HEADS + KV_HEADS))
    ]
    query, kv = parts[0], head_cut(own.kv, head_dim=D)
    true: dict[str, Any] = {"q_width": HEADS * D, "k_width": KV_HEADS * D, "counted_kv_heads": own.counted_kv_heads}
    found = split_qkv_tp_rmsnorm_rope(
        cut(qkv, joined(*parts), dim=1), table[:, : R // 2], table[:, R // 2 :], cut(q_weight, query, dim=0),
        cut(k_weight, kv, dim=0), q_hidden_size=query.size, kv_hidden_size=kv.size, head_dim=D, rotary_dim=R, eps=EPS,
        tp_world=communicator.size, **(true if widths == "true" else {}),
    )  # fmt: skip

    shares = [cut(x.flatten(1), which, dim=1) for x, which in zip(expected, (query, kv, kv), strict=True)]
    differing = sum(int((a != b).sum()) for a, b in zip(found, shares, strict=True))
    return int(communicator.all_reduce(torch.tensor([differing]), label="verdicts"))
