"""One rank's heads of drawn queries and keys, the statistics of all ranks', and what a rotation must make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.expectation import expectation
from minimax_m2.harness.op import Declared, find_op
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.sharding import Layout

M2 = MiniMaxM2Config()
PAGES, PAGE = 8, 16


@dataclass(frozen=True, slots=True)
class Rotated:
    """Arguments of ``qk_norm_rope_cache`` on one rank.

    rest   q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots
    stats  what the sum over ranks is, to float32
    """

    qkv: Tensor
    rest: tuple[Tensor, ...]
    stats: Tensor
    counts: dict[str, int]
    counted: dict[str, int | None]
    sizes: dict[str, Any]

    def in_model_dtype(self) -> Rotated:
        """The same with weights and table rounded to qkv's dtype, and caches of its own."""
        *floats, positions, k_cache, v_cache, slots = self.rest
        caches = (torch.zeros_like(k_cache), torch.zeros_like(v_cache))
        return replace(self, rest=(*(x.to(self.qkv.dtype) for x in floats), positions, *caches, slots))

    def held(self, declared: Declared, query: Tensor) -> Sequence[Comparison]:
        """Hold the queries, and the keys and values in the cache, against the budget of the op without a cache."""
        op = find_op("qk_norm_rope")
        q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots = self.rest
        model = q_weight.dtype == self.qkv.dtype
        case = op.case(
            T=len(self.qkv), Hq=self.counts["num_heads"], Hk=self.counts["num_kv_heads"], D=self.counts["head_dim"],
            R=self.sizes["rotary_dim"], stats="given", weights="model" if model else "float32",
            table="bfloat16" if model else "float32",
        )  # fmt: skip
        arguments = {
            "qkv": self.qkv, "stats": self.stats, "q_weight": q_weight, "k_weight": k_weight, "cos_sin": cos_sin,
            "positions": positions, **self.sizes,
        }  # fmt: skip
        with torch.device(self.qkv.device):
            right = expectation(op, case, op.full_contract(case, declared), arguments)
            kv = (cache.flatten(0, 1)[slots] for cache in (k_cache, v_cache))
            return right.judge((query, *kv))


def drawn_heads(ranks: Communicator, tokens: int, where: str) -> Rotated:
    """This rank's share of a row, with other numbers on each rank; all ranks draw at the same time."""
    heads = Layout(tp=ranks.size, rank=ranks.rank).heads(M2)
    counts = {"num_heads": len(heads.query), "num_kv_heads": len(heads.kv), "head_dim": M2.head_dim}
    generator = torch.Generator().manual_seed(64 * tokens + ranks.rank)
    width = (counts["num_heads"] + 2 * counts["num_kv_heads"]) * M2.head_dim
    qkv = torch.randn(tokens, width, generator=generator).bfloat16().to(where)
    table = cos_sin_table(num_positions=4096, rotary_dim=M2.rotary_dim, theta=M2.rope_theta).float().to(where)
    widths = [counts[name] * M2.head_dim for name in ("num_heads", "num_kv_heads")]
    weights = [(1 + torch.randn(n, generator=generator) / 8).to(where) for n in widths]
    caches = [torch.zeros(PAGES, PAGE, counts["num_kv_heads"], M2.head_dim, device=where).bfloat16() for _ in range(2)]
    at = torch.arange(tokens, device=where)
    own = torch.stack([part.double().square().sum(-1) for part in qkv.split([*widths, widths[1]], -1)[:2]], -1)
    return Rotated(
        qkv, (*weights, table, at, *caches, at), ranks.all_reduce(own, label="statistics").float(), counts,
        {"counted_kv_heads": heads.counted_kv_heads},
        {**counts, "rotary_dim": M2.rotary_dim, "q_width": M2.q_width, "k_width": M2.kv_width, "eps": M2.rms_norm_eps},
    )  # fmt: skip
