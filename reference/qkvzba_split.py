"""Take apart the two input projections of a gated delta net (Qwen3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract


def qkvzba_split(
    qkvz: Tensor,
    ba: Tensor,
    *,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    layout: str = "contiguous",
    contract: Contract = EXACT,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the convolution its ``[q | k | v]``, the output gate z, and the gates' inputs b and a.

        contiguous   qkvz = [q | k | v | z], ba = [b | a]  (Qwen3.5)
        interleaved  each key head brings its own [q | k | v | z] and [b | a], of Hv/Hk value heads  (Qwen3-Next)

    qkvz     [T, 2*Hk*Dk + 2*Hv*Dv];  ba [T, 2*Hv]
    returns  qkv [T, 2*Hk*Dk + Hv*Dv], z [T, Hv, Dv], b [T, Hv], a [T, Hv]; value heads in the order of their key heads

    Contract: no fields; the numbers are copies. Dv may differ from Dk: SGLang's interleaved CPU kernel
    (sgl-kernel/csrc/cpu/model/qwen3.cpp, fused_qkvzba_split_reshape_cat_impl) copies Hv/Hk * Dk values of v and z.

    Raises ValueError for an unknown layout, and where Hk does not divide Hv.
    """
    if layout not in ("contiguous", "interleaved") or num_v_heads % num_k_heads:
        raise ValueError(
            f"{layout=}, {num_k_heads=}, {num_v_heads=}: use contiguous or interleaved, and heads that divide"
        )
    # Contiguous is interleaved with one group of all heads.
    groups = 1 if layout == "contiguous" else num_k_heads
    key, value, heads = num_k_heads * head_k_dim // groups, num_v_heads * head_v_dim // groups, num_v_heads // groups
    q, k, v, z = qkvz.unflatten(-1, (groups, -1)).split([key, key, value, value], -1)
    b, a = ba.unflatten(-1, (groups, -1)).split([heads, heads], -1)
    qkv = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], -1)
    return qkv, z.flatten(1).unflatten(1, (num_v_heads, head_v_dim)), b.flatten(1), a.flatten(1)
