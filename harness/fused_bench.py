"""What a sum over ranks costs, alone and with the step that follows it: by other engines, and inside our kernels.

torchrun's ``-m minimax_m2.harness.ranks minimax_m2.harness.fused_bench:measured`` times them on a GPU each and holds
what the timed graphs wrote against its budget; ``python -m minimax_m2.harness.fused_bench RECORDS.jsonl`` prints the
table of docs/parallel.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed

from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.cuda_graph import captured, on_a_stream, replay_seconds
from minimax_m2.harness.fused_ranks import EPS, Rows, drawn_rows, held_rows, held_sum
from minimax_m2.harness.fused_sums import FusedSums
from minimax_m2.harness.language import provider_table
from minimax_m2.harness.peer_sums import Engine, FlashInferSum, Peers, VllmStatistics, peer_sums
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.ranks import device_of_ranks
from minimax_m2.harness.record import parsed
from minimax_m2.harness.relay import Relay
from minimax_m2.harness.rotated_shares import Rotated, drawn_heads
from minimax_m2.harness.symmetric import Symmetric
from minimax_m2.harness.verdict import describe
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.table import OpTable

M2 = MiniMaxM2Config()
TOKENS = (1, 8, 32, 64)
# Ranks do not start a graph at the same instant: one of many calls spreads what the first waits.
CALLS, REPLAYS = 200, 60
SUM, NORM, ROPE = "o_proj", "o_proj and add_rms_norm", "statistics and qk_norm_rope_cache"
# What is timed without a sum has nothing to be held against.
ALONE = "no sum"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a step.

    call   what is captured, many times over
    hold   what the last call returned, held against its budget
    ready  what all ranks do between the capture and the first replay
    """

    call: Callable[[], Any]
    hold: Callable[[Any], Sequence[Comparison]] | None = None
    ready: Callable[[], None] = lambda: None


def measured(communicator: Communicator) -> str:
    """Time every way of the three steps in graphs, one call after the other as in a layer; a line of JSON each."""
    inner = communicator.inner if isinstance(communicator, Relay) else communicator
    ops, where = provider_table(ours("gpu")), device_of_ranks()
    fused = FusedSums(ops, inner, M2, patience_s=60)
    peers = peer_sums(inner, width=M2.hidden_size)
    adders = {distributed.get_backend(): inner, "symmetric": Symmetric(inner), **peers.adders}
    found: list[dict[str, Any]] = []
    for tokens in TOKENS:
        rows = drawn_rows(inner.size, tokens=tokens, width=M2.hidden_size, dtype=torch.bfloat16, seed=tokens)
        steps = {
            SUM: _sums(adders, rows, inner.rank, where),
            NORM: _norms(ops, fused.table, adders, rows, inner.rank, where),
            ROPE: _ropes(ops, fused.table, adders, peers, drawn_heads(inner, tokens, where)),
        }
        for what, ways in steps.items():
            for by, way in ways.items():
                us, wrong = _timed(way, inner, where)
                found.append(
                    {"what": what, "by": by, "tokens": tokens, "graph_us": median(us), "best_us": us[0], "wrong": wrong}
                )
    fused.raise_if_missing()
    said = {"ranks": inner.size, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
    lines = [{**said, "kind": "fused sum", **line} for line in found]
    return "\n".join(json.dumps(line) for line in (*lines, *_absent(said, peers)))


def _absent(said: Mapping[str, Any], peers: Peers) -> list[dict[str, Any]]:
    return [{**said, "kind": "absent", "by": name, "why": why} for name, why in peers.absent.items()]


def _timed(way: Way, inner: Communicator, where: str) -> tuple[list[float], str]:
    """Microseconds of a call, rising, and what is wrong with what the last replay wrote, or an empty string."""

    def together() -> None:
        torch.cuda.synchronize()
        inner.all_reduce(torch.zeros(1, device=where), label="ready")
        torch.cuda.synchronize()

    # All ranks have compiled before any of them waits for another in a kernel.
    on_a_stream(way.call)
    together()
    graph, returned = captured(lambda: [way.call() for _ in range(CALLS)][-1])
    way.ready()
    together()
    replay_seconds(graph, 1)
    us = sorted(1e6 * replay_seconds(graph, 1) / CALLS for _ in range(REPLAYS))
    torch.cuda.synchronize()
    held = () if way.hold is None else way.hold(returned)
    told = "; ".join(describe(each) for each in held if not each.passed)
    # Nobody frees what another rank still reads.
    together()
    return us, told


def _ready(adder: Communicator) -> Callable[[], None]:
    return adder.ready if isinstance(adder, Engine) else lambda: None


def _taking(adders: Mapping[str, Communicator], share: Tensor) -> dict[str, Communicator]:
    """Those that add a share themselves: none is timed under the name of another."""
    return {
        by: adder for by, adder in adders.items() if not isinstance(adder, Engine | Symmetric) or adder.takes(share)
    }


def _sums(adders: Mapping[str, Communicator], rows: Rows, rank: int, where: str) -> dict[str, Way]:
    share = rows.shares[rank].to(where)
    return {
        by: Way(partial(adder.all_reduce, share), lambda y: [held_sum(rows, y.cpu())], _ready(adder))
        for by, adder in _taking(adders, share).items()
    }


def _norms(
    ops: OpTable, fused: OpTable, adders: Mapping[str, Communicator], rows: Rows, rank: int, where: str
) -> dict[str, Way]:
    share, residual, weight = (x.to(where) for x in (rows.shares[rank], rows.residual, rows.weight))
    norm = partial(ops.add_rms_norm, eps=EPS)

    def held(found: tuple[Tensor, Tensor], **contract: str) -> list[Comparison]:
        return held_rows(rows, (found[0].cpu(), found[1].cpu()), **contract)

    rounded = partial(held, running="bfloat16")
    found = {
        by: Way(lambda adder=adder: norm(adder.all_reduce(share), residual, weight), rounded, _ready(adder))  # type: ignore[misc]
        for by, adder in _taking(adders, share).items()
    }
    found[ALONE] = Way(partial(norm, share, residual, weight))
    other = adders.get("flashinfer")
    if isinstance(other, FlashInferSum):
        found["flashinfer, fused"] = Way(
            partial(other.add_rms_norm, share, residual, weight, eps=EPS), partial(rounded, variance_of="rounded")
        )
    found["fused"] = Way(partial(fused.add_rms_norm, share, residual, weight, eps=EPS, label="o_proj"), held)
    return found


def _ropes(
    ops: OpTable, fused: OpTable, adders: Mapping[str, Communicator], peers: Peers, given: Rotated
) -> dict[str, Way]:
    def by_adder(adder: Communicator) -> Tensor:
        stats = adder.all_reduce(ops.qk_sum_squares(given.qkv, **given.counts, **given.counted))
        query: Tensor = ops.qk_norm_rope_cache(given.qkv, stats, *given.rest, **given.sizes)
        return query

    contract = ours("gpu").contract["qk_norm_rope"]
    held = partial(given.held, contract)
    # Statistics are float32, 8 bytes a token: too few for other engines' sums, one of which has a kernel for them.
    plain = {by: adder for by, adder in adders.items() if by not in peers.adders}
    found = {by: Way(partial(by_adder, adder), held) for by, adder in plain.items()}
    found[ALONE] = Way(partial(ops.qk_norm_rope_cache, given.qkv, None, *given.rest, **given.sizes))
    for by, statistics in peers.statistics.items():
        found[f"{by}, fused"] = _vllm(statistics, given)
    found["fused"] = Way(
        partial(
            fused.qk_norm_rope_cache, given.qkv, None, *given.rest, **given.sizes, **given.counted, label="statistics"
        ),
        held,
    )
    return found


def _vllm(statistics: VllmStatistics, given: Rotated) -> Way:
    """vLLM's weights and table are of the model's dtype."""
    own = given.in_model_dtype()
    return Way(
        partial(statistics.qk_norm_rope_cache, own.qkv, *own.rest, **own.sizes),
        partial(own.held, {"normalised": "dtype", "cos_sin": "dtype"}),
    )


def table(path: Path) -> str:
    """Markdown: microseconds by tokens, or that what was written is wrong."""
    lines = [found for _, found in parsed(path, lambda text: None) if found.get("kind") == "fused sum"]
    timed = {(line["what"], line["by"], line["tokens"]): line for line in lines}
    text = ["| step | sum by | " + " | ".join(f"T = {tokens}" for tokens in TOKENS) + " |", "|---" * 6 + "|"]
    for what, by in dict.fromkeys((what, by) for what, by, _ in timed):
        cells = " | ".join(_cell(timed.get((what, by, tokens))) for tokens in TOKENS)
        text.append(f"| {what} | {by} | {cells} |")
    return "\n".join(text)


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return ""
    return "wrong" if line.get("wrong") else f"{line['graph_us']:.1f}"


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])) + "\n")
