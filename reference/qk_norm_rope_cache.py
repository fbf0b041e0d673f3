"""QK norm and rotary embedding, then keys and values straight into the paged cache, fused."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract
from minimax_m2.reference.kv_cache import kv_cache
from minimax_m2.reference.qk_norm_rope import qk_norm_rope


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int,
    rotary_dim: int, q_width: int, k_width: int, eps: float, contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Compute ``q, k, v = qk_norm_rope(...)`` and write k and v to ``slots`` of the caches.

    Shapes as in qk_norm_rope and kv_cache; k_cache!, v_cache! are written in place; returns q [T, Hq, D].

    Contract: the fields of qk_norm_rope, and kv_cache's ``stored`` (None: k is rounded once, by ``out``).
    """
    q, k, v = qk_norm_rope(
        qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps, contract=contract,
    )  # fmt: skip
    kv_cache(k, v, k_cache, v_cache, slots, contract=contract)
    return q
