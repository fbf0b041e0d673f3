"""What a sum over ranks costs with the step that follows it: as two, or three, launches, and as one.

torchrun's ``-m minimax_m2.harness.ranks minimax_m2.harness.fused_bench:measured`` times them on a GPU each; ``python -m
minimax_m2.harness.fused_bench RECORDS.jsonl`` prints the table of docs/parallel.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed

from minimax_m2.harness.fused_sums import FusedSums
from minimax_m2.harness.graph_timing import replayed
from minimax_m2.harness.language import provider_table
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.ranks import device_of_ranks
from minimax_m2.harness.record import parsed
from minimax_m2.harness.relay import Relay
from minimax_m2.harness.symmetric import Symmetric
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.table import OpTable

M2 = MiniMaxM2Config()
TOKENS = (1, 8, 32, 64)
# Ranks do not start a graph at the same instant: one of many calls spreads what the first waits.
CALLS, REPLAYS = 200, 60
NORM, ROPE = "o_proj and add_rms_norm", "statistics and qk_norm_rope_cache"


def measured(communicator: Communicator) -> str:
    """Time both steps in graphs, one call after the other as in a layer; a line of JSON each."""
    inner = communicator.inner if isinstance(communicator, Relay) else communicator
    ops, where = provider_table(ours("gpu")), device_of_ranks()
    fused = FusedSums(ops, inner, M2, patience_s=60)
    adders = {distributed.get_backend(): inner, "symmetric": Symmetric(inner)}
    heads = Layout(tp=inner.size, rank=inner.rank).heads(M2)
    found: list[dict[str, Any]] = []
    for tokens in TOKENS:
        for what, calls in ((NORM, _norms), (ROPE, _ropes)):
            for by, call in calls(ops, fused.table, adders, heads, tokens, where).items():
                call()
                # All ranks have compiled before any of them waits for another in a kernel.
                inner.all_reduce(torch.zeros(1, device=where), label="ready")
                us = sorted(1e6 * seconds for seconds in replayed([call] * CALLS, replays=REPLAYS))
                found.append({"what": what, "by": by, "tokens": tokens, "graph_us": median(us), "best_us": us[0]})
    fused.raise_if_missing()
    said = {"ranks": inner.size, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return "\n".join(json.dumps({**said, "kind": "fused sum", **line}) for line in found)


def _norms(
    ops: OpTable, fused: OpTable, adders: dict[str, Communicator], heads: Any, tokens: int, where: str
) -> dict[str, Callable[[], object]]:  # fmt: skip
    x, residual = (torch.randn(tokens, M2.hidden_size, device=where).bfloat16() for _ in range(2))
    weight = torch.ones(M2.hidden_size, device=where).bfloat16()
    norm = partial(ops.add_rms_norm, eps=M2.rms_norm_eps)
    found: dict[str, Callable[[], object]] = {
        by: lambda adder=adder: norm(adder.all_reduce(x), residual, weight)  # type: ignore[misc]
        for by, adder in adders.items()
    }
    found["no sum"] = partial(norm, x, residual, weight)
    found["fused"] = partial(fused.add_rms_norm, x, residual, weight, eps=M2.rms_norm_eps, label="o_proj")
    return found


def _ropes(
    ops: OpTable, fused: OpTable, adders: dict[str, Communicator], heads: Any, tokens: int, where: str
) -> dict[str, Callable[[], object]]:  # fmt: skip
    counts = {"num_heads": len(heads.query), "num_kv_heads": len(heads.kv), "head_dim": M2.head_dim}
    qkv = torch.randn(tokens, (counts["num_heads"] + 2 * counts["num_kv_heads"]) * M2.head_dim, device=where).bfloat16()
    table = cos_sin_table(num_positions=4096, rotary_dim=M2.rotary_dim, theta=M2.rope_theta).float().to(where)
    weights = [torch.ones(counts[name] * M2.head_dim, device=where) for name in ("num_heads", "num_kv_heads")]
    caches = [torch.zeros(8, 16, counts["num_kv_heads"], M2.head_dim, device=where).bfloat16() for _ in range(2)]
    rest = (*weights, table, torch.arange(tokens, device=where), *caches, torch.arange(tokens, device=where))
    sizes = {**counts, "rotary_dim": M2.rotary_dim, "q_width": M2.q_width, "k_width": M2.kv_width, "eps": 1e-6}
    counted = {"counted_kv_heads": heads.counted_kv_heads}

    def by_adder(adder: Communicator) -> Tensor:
        stats = adder.all_reduce(ops.qk_sum_squares(qkv, **counts, **counted))
        query: Tensor = ops.qk_norm_rope_cache(qkv, stats, *rest, **sizes)
        return query

    found: dict[str, Callable[[], object]] = {by: partial(by_adder, adder) for by, adder in adders.items()}
    found["no sum"] = partial(ops.qk_norm_rope_cache, qkv, None, *rest, **sizes)
    found["fused"] = partial(fused.qk_norm_rope_cache, qkv, None, *rest, **sizes, **counted, label="statistics")
    return found


def table(path: Path) -> str:
    """Markdown: microseconds by tokens."""
    lines = [found for _, found in parsed(path, lambda text: None) if found.get("kind") == "fused sum"]
    timed = {(line["what"], line["by"], line["tokens"]): line["graph_us"] for line in lines}
    text = ["| step | sum by | " + " | ".join(f"T = {tokens}" for tokens in TOKENS) + " |", "|---" * 6 + "|"]
    for what, by in dict.fromkeys((what, by) for what, by, _ in timed):
        cells = " | ".join(f"{timed[what, by, tokens]:.1f}" for tokens in TOKENS)
        text.append(f"| {what} | {by} | {cells} |")
    return "\n".join(text)


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])) + "\n")
