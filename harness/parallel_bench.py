"""What splitting a layer costs: collectives and their bytes, their measured times, and the time of a step, computed.

``python -m minimax_m2.harness.parallel_bench RECORDS.jsonl`` prints the table of docs/parallel.md from one device's
records; torchrun's ``-m minimax_m2.harness.ranks minimax_m2.harness.parallel_bench:measured`` times collectives.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import distributed

from minimax_m2.harness.graph_timing import replayed
from minimax_m2.harness.ranks import device_of_ranks
from minimax_m2.harness.record import Record, parsed, read
from minimax_m2.harness.roll_call import RollCall
from minimax_m2.harness.symmetric import Symmetric
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout

M2 = MiniMaxM2Config()
BLOCKS, CALLS, REPLAYS = 9, 20, 60
TOKENS = (1, 8, 32, 64, 256, 1024, 4096)
# A layer's steps beside its products, and how often each runs.
OTHER_STEPS = {"add_rms_norm": 2, "qk_sum_squares": 1, "qk_norm_rope": 1, "router_gemm": 1, "routing": 1}


class Link(NamedTuple):
    """A stated link: one direction of a rank, and the time before the first byte arrives."""

    name: str
    bytes_per_s: float
    latency_us: float


# NVIDIA's figure for fourth-generation NVLink, 900 GB/s both ways; one 400 Gb/s port a rank. Latencies are assumed.
LINKS = (Link("NVLink", 450e9, 3.0), Link("400 Gb/s Ethernet", 50e9, 8.0))


def layer_bytes(
    layout: Layout, tokens: int, *, config: MiniMaxM2Config = M2, itemsize: int = 2
) -> dict[str, tuple[str, int]]:
    """Each collective of a layer: its kind and the bytes that a rank hands in, for ``tokens`` of every group.

    itemsize  of activations; statistics are float32, or float64 beside float64
    """
    hidden = tokens * config.hidden_size * itemsize
    found: dict[str, tuple[str, int]] = {}
    if layout.tp > 1:
        found |= {"statistics": ("all_reduce", tokens * 2 * max(4, itemsize)), "o_proj": ("all_reduce", hidden)}
    if layout.dispatch == "all_to_all":
        slots = -(-tokens // layout.tp) * config.num_experts_per_tok
        rows = slots * config.hidden_size * itemsize
        found |= {"to experts": ("all_to_all", rows), "ids": ("all_to_all", slots * 4), "back": ("all_to_all", rows)}
        if layout.tp > 1:
            found["summed"] = ("all_gather", -(-tokens // layout.tp) * config.hidden_size * itemsize)
        return found
    if layout.dp > 1:
        found |= {"tokens": ("all_gather", hidden), "experts across": ("reduce_scatter", hidden * layout.dp)}
    if layout.tp > 1:
        found["experts"] = ("all_reduce", hidden)
    return found


def collective_us(kind: str, bytes_in: int, ranks: int, link: Link) -> float:
    """Time of a collective: steps of latency, and the bytes that a rank sends; 0 for one rank.

    ring                        all_reduce 2 (n - 1) steps and 2 (n - 1) / n of its bytes, the others n - 1 steps;
                                all_gather n - 1 times its bytes, the rest (n - 1) / n
    recursive doubling          an all_reduce of few bytes: ceil(log2 n) steps, all bytes in each; the faster counts
    """
    others = ranks - 1
    steps = 2 * others if kind == "all_reduce" else others
    share = {"all_reduce": 2 * others / ranks, "all_gather": float(others)}.get(kind, others / ranks)
    once = bytes_in / link.bytes_per_s * 1e6
    ring = steps * link.latency_us + share * once
    doublings = others.bit_length()
    return min(ring, doublings * (link.latency_us + once)) if kind == "all_reduce" else ring


class Device(NamedTuple):
    """What one device's records say: how fast experts read weights, and what a layer's other steps take."""

    bytes_per_s: float
    other_us: float


def device(records: Iterable[Record]) -> Device:
    """Read a device off the decode timings of its records."""
    timed = {record.op: record.timing for record in records if record.timing and record.timing.shape == "decode"}
    missing = [op for op in ("experts", *OTHER_STEPS) if op not in timed]
    if missing:
        raise ValueError(f"no decode timing of {', '.join(missing)}; record a run that times all of them")
    experts = timed["experts"]
    return Device(
        experts.bytes / experts.median_us * 1e6, sum(timed[op].median_us * n for op, n in OTHER_STEPS.items())
    )


def weight_bytes(tokens: int) -> float:
    """Bytes of e4m3 weights that a layer reads for ``tokens``: its projections, and the experts that somebody chose.

    E (1 - (1 - K / E) ^ T) experts, where each token chooses by chance
    """
    config, E, K = M2, M2.num_local_experts, M2.num_experts_per_tok
    active = E * (1 - (1 - K / E) ** tokens)
    projections = config.hidden_size * (2 * config.q_width + 2 * config.kv_width)
    return projections + active * 3 * config.hidden_size * config.intermediate_size


def step_us(ranks: int, tokens: int, link: Link, on: Device) -> float:
    """Time of a decode step under ``tp=ranks``: weights read in equal shares, other steps undivided, and the talk."""
    layout = Layout(tp=ranks)
    talk = sum(collective_us(kind, size, ranks, link) for kind, size in layer_bytes(layout, tokens).values())
    return M2.num_hidden_layers * (weight_bytes(tokens) / ranks / on.bytes_per_s * 1e6 + on.other_us + talk)


def measured(communicator: RollCall) -> str:
    """Time a layer's sums, called and as graphs, and the smallest of them behind the roll call; a line of JSON each."""
    where = device_of_ranks()
    adders: dict[str, Communicator] = {distributed.get_backend(): communicator.inner}
    if where == "cuda":
        adders["symmetric"] = Symmetric(communicator.inner)
    found: list[dict[str, Any]] = []
    for tokens in TOKENS:
        for what, width, dtype in (("statistics", 2, torch.float32), ("o_proj", M2.hidden_size, torch.bfloat16)):
            x = torch.zeros(tokens, width, dtype=dtype, device=where)
            for by, adder in adders.items():
                if by != "symmetric" or Symmetric(communicator.inner).takes(x):
                    call = functools.partial(adder.all_reduce, x)
                    line = {"what": what, "by": by, "tokens": tokens, "bytes": x.nbytes, "us": _median_us(call, where)}
                    # Sums are one after the other in a graph, as in a layer; there is nothing in a cache to avoid.
                    graph_us = median(replayed([call], replays=REPLAYS)) * 1e6 if where == "cuda" else None
                    found.append(line | {"graph_us": graph_us})
    x = torch.zeros(1, 2, device=where)
    us = _median_us(functools.partial(communicator.all_reduce, x), where)
    found.append({"what": "statistics behind the roll call", "tokens": 1, "bytes": 8, "us": us})
    name = torch.cuda.get_device_name() if where == "cuda" else "cpu"
    said = {"ranks": communicator.size, "device": name, "torch": torch.__version__, "kind": "collective"}
    return "\n".join(json.dumps(said | line) for line in found)


def _median_us(call: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(BLOCKS + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        _wait(device)
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return round(median(times[1:]), 2)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def collectives_table(path: Path) -> str:
    """Microseconds of a sum by tokens, from the lines of ``measured``: as a graph where there is one, else called."""
    lines = [found for _, found in parsed(path, lambda text: None) if found.get("kind") == "collective"]
    timed = {(line["what"], line.get("by"), line["tokens"]): line for line in lines}
    rows = dict.fromkeys((what, by) for what, by, _ in timed if by is not None)
    text = ["| sum | by | " + " | ".join(f"T = {tokens}" for tokens in TOKENS) + " |", "|---" * (len(TOKENS) + 2) + "|"]
    for what, by in rows:
        cells = [_cell(timed.get((what, by, tokens))) for tokens in TOKENS]
        text.append(f"| {what} | {by} | {' | '.join(cells)} |")
    return "\n".join(text)


def _cell(line: dict[str, Any] | None) -> str:
    return "" if line is None else f"{line['graph_us'] or line['us']:.1f}"


def table(on: Device) -> str:
    """Milliseconds of a decode step by ranks, links and tokens."""
    shown = [(tokens, link) for tokens in (1, 64) for link in LINKS]
    text = ["| ranks | " + " | ".join(f"T = {tokens}, {link.name}" for tokens, link in shown) + " |"]
    text.append("|---" * (len(shown) + 1) + "|")
    for ranks in (1, 2, 4, 8, 16, 32, 64):
        cells = " | ".join(f"{step_us(ranks, tokens, link, on) / 1000:.2f}" for tokens, link in shown)
        text.append(f"| {ranks} | {cells} |")
    return "\n".join(text)


if __name__ == "__main__":
    sys.stdout.write(table(device(read(Path(sys.argv[1])))) + "\n")
