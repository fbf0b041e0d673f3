"""RMSNorm over the whole width of q and of k, head split, then rotary embedding.

Cut in two around the all-reduce of a tensor-parallel group: ``qk_sum_squares`` makes a rank's share of the
statistics, ``qk_norm_rope`` uses their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.rope import rotated, rotation_rows


def qk_sum_squares(
    qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int,
    counted_kv_heads: int | None = None, contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Sum the squares of each token's local q and k channels.

    qkv      [T, (Hq + 2*Hk)*D], row stride free
    returns  [T, 2] float32 (float64 stays), q then k

    Only the first ``counted_kv_heads`` (None: all) enter the sum of k, so that replicas are counted once.

    Contract: ``stats``, the sums: float32 in every engine. Source: vLLM rms_norm_tp.py, SGLang minimax_m2.py.
    """
    counted = num_kv_heads if counted_kv_heads is None else counted_kv_heads
    if not 0 <= counted <= num_kv_heads:
        raise ValueError(f"counted_kv_heads={counted} is outside 0..{num_kv_heads}, the local key/value heads")
    q, k, _ = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).split(
        [num_heads * head_dim, counted * head_dim, (2 * num_kv_heads - counted) * head_dim], -1
    )
    return rounded(torch.stack([q.square().sum(-1), k.square().sum(-1)], -1), contract.stats)


def qk_norm_rope(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int,
    q_width: int, k_width: int, eps: float, contract: Contract = EXACT,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise q and k over their full widths, split heads, rotate the first R channels of each.

        q' = rope(q * rsqrt(stats_q / q_width + eps) * q_weight), k' likewise, v' = v

    qkv                 [T, (Hq + 2*Hk)*D], heads of this rank
    stats               [T, 2], sums over all ranks; None: this rank is the only one
    q_weight, k_weight  [Hq*D], [Hk*D]
    cos_sin, positions  as in rope; q_width, k_width: true widths of the model, whatever is padded or replicated
    returns             q [T, Hq, D], k, v [T, Hk, D], contiguous, dtype of qkv

    Contract (besides ``stats`` above and rope's ``cos_sin, products, out``):
        rstd        1/rms of a row: float32 in every engine.
        eps_on      "mean" (None): vLLM, SGLang, NPU; "sum": rsqrt((stats + eps) / width), SGLang tp_qknorm.cuh.
        normalised  the norm's result. Model dtype where it is stored and read again: NPU split_qkv_tp_rmsnorm_rope,
                    every unfused pair of kernels; float32 or None: one rounding, at the end.
    """
    sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
    if stats is None:
        stats = qk_sum_squares(
            qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, contract=contract
        )
    q, k, v = qkv.split(sizes, -1)
    rows = rotation_rows(cos_sin, positions, rotary_dim=rotary_dim, head_dim=head_dim, contract=contract)
    # What the norm has already rounded to the output's format is not rounded again where it passes through.
    pass_site = None if contract.normalised == contract.out else contract.out
    outputs = []
    for x, ss, width, weight in ((q, stats[:, :1], q_width, q_weight), (k, stats[:, 1:], k_width, k_weight)):
        mean = (ss + eps) / width if contract.eps_on == "sum" else ss / width + eps
        normalised = rounded(x * rounded(torch.rsqrt(mean), contract.rstd) * weight, contract.normalised)
        y = normalised.reshape(qkv.shape[0], x.shape[-1] // head_dim, head_dim)
        turned = rotated(y[..., :rotary_dim], rows, contract=contract)
        outputs.append(torch.cat([turned, rounded(y[..., rotary_dim:], pass_site)], -1).to(qkv.dtype))
    # cat copies, even the slice of a single row, so v is memory of its own as q and k are.
    return outputs[0], outputs[1], torch.cat([v], -1).reshape(qkv.shape[0], num_kv_heads, head_dim)
