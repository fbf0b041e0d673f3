"""Normalises every head by itself, where M2 normalises the whole width before it splits heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.qk_norm_rope import qk_sum_squares
from minimax_m2.reference.rope import rotated, rotation_rows

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/vllm-project/vllm-metal/pull/788",
    "symptom": "the norm runs after the split into heads: gibberish, or a width mismatch",
    "check": "q:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    *, rotary_dim: int, q_width: int, k_width: int, eps: float, **heads: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    head_dim, counts = heads["head_dim"], (heads["num_heads"], heads["num_kv_heads"], heads["num_kv_heads"])
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in qkv.float().split([n * head_dim for n in counts], -1))
    rows = rotation_rows(cos_sin.float(), positions, rotary_dim=rotary_dim, head_dim=head_dim)

    def mean_of_all(i: int) -> Tensor:
        sums = qk_sum_squares(qkv, **heads) if stats is None else stats
        return sums[:, i, None, None] / (q_width, k_width)[i]

    # right: means = [mean_of_all(0), mean_of_all(1)]
    means = [x.square().mean(-1, keepdim=True) for x in (q, k)]
    outputs = []
    for x, mean, weight in zip((q, k), means, (q_weight, k_weight), strict=True):
        y = x * torch.rsqrt(mean + eps) * weight.float().view(-1, head_dim)
        outputs.append(torch.cat([rotated(y[..., :rotary_dim], rows), y[..., rotary_dim:]], -1).to(qkv.dtype))
    return outputs[0], outputs[1], v.to(qkv.dtype, copy=True)
