"""What splitting a layer costs: collectives and bytes, counted; their times, measured; time per token, computed.

``python -m minimax_m2.harness.parallel_bench gloo.jsonl`` prints the tables of docs/parallel.md; under torchrun,
``-m minimax_m2.harness.ranks minimax_m2.harness.parallel_bench:measured`` prints the records of one group of ranks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout

M2 = MiniMaxM2Config()
BLOCKS, CALLS = 9, 20


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
    """Time of a collective in a ring: so many steps of latency, and the bytes that each rank sends.

    all_reduce 2 (n - 1) steps and 2 (n - 1) / n of its bytes; the others n - 1 steps; all_gather n - 1 times, the
    rest (n - 1) / n of its bytes
    """
    others = ranks - 1
    steps = 2 * others if kind == "all_reduce" else others
    share = {"all_reduce": 2 * others / ranks, "all_gather": float(others)}.get(kind, others / ranks)
    return steps * link.latency_us + share * bytes_in / link.bytes_per_s * 1e6


def token_us(ranks: int, tokens: int, link: Link, layer_us: float) -> float:
    """Time of a decode step, all layers: one rank's measured time over ``ranks``, and the collectives between them."""
    layout = Layout(tp=ranks)
    talk = sum(collective_us(kind, size, ranks, link) for kind, size in layer_bytes(layout, tokens).values())
    return M2.num_hidden_layers * (layer_us / ranks + talk)


def measured(communicator: Communicator) -> str:
    """Time collectives of a layer's sizes, and on rank 0's device a layer's products; a line of JSON each."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    inner: Any = communicator
    plain: Communicator = inner.inner
    found: list[dict[str, Any]] = []
    for tokens in (1, 16, 64, 1024):
        for what, x in (("statistics", torch.zeros(tokens, 2)), ("o_proj", torch.zeros(tokens, 3072).bfloat16())):
            x = x.to(device)
            us = _median_us(lambda x=x: plain.all_reduce(x), device)
            found.append({"what": what, "kind": "all_reduce", "tokens": tokens, "bytes": x.nbytes, "us": us})
    x = torch.zeros(1, 2)
    roll = _median_us(lambda: communicator.all_reduce(x.to(device)), device)
    found.append({"what": "statistics with the roll call", "kind": "all_reduce", "tokens": 1, "bytes": 8, "us": roll})
    if communicator.rank == 0:
        found += [{"what": "layer's products", "kind": "compute", "tokens": t, "us": us} for t, us in _layer_us(device)]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    said = {
        "ranks": communicator.size,
        "backend": distributed.get_backend(),
        "device": name,
        "torch": torch.__version__,
    }
    return "\n".join(json.dumps(said | line) for line in found)


def _layer_us(device: str) -> Iterator[tuple[int, float]]:
    """A layer's products in bfloat16 at M2's width, 8 experts for each token up to 64; on a GPU only."""
    if device == "cpu":
        return
    kind = {"device": device, "dtype": torch.bfloat16}
    qkv, o_proj = torch.zeros(8192, 3072, **kind), torch.zeros(3072, 6144, **kind)  # type: ignore[call-overload]
    for tokens in (1, 16):
        active = min(256, 8 * tokens)
        w13 = torch.zeros(active, 3072, 3072, **kind)  # type: ignore[call-overload]
        w2 = torch.zeros(active, 1536, 3072, **kind)  # type: ignore[call-overload]
        x, wide = torch.zeros(tokens, 3072, **kind), torch.zeros(tokens, 6144, **kind)  # type: ignore[call-overload]
        rows = torch.zeros(active, 1, 3072, **kind)  # type: ignore[call-overload]

        def products(
            x: Tensor = x, wide: Tensor = wide, rows: Tensor = rows, w13: Tensor = w13, w2: Tensor = w2
        ) -> None:
            torch.mm(x, qkv.T)
            torch.mm(wide, o_proj.T)
            torch.bmm(torch.bmm(rows, w13)[..., :1536], w2)

        yield tokens, _median_us(products, device)


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


def tables(lines: list[dict[str, Any]]) -> str:
    """The measured and the computed table of docs/parallel.md."""
    text = ["| back end | ranks | tensor | tokens | bytes | us |", "|---|---|---|---|---|---|"]
    columns = ("backend", "ranks", "what", "tokens", "bytes", "us")
    talk = (line for line in lines if line["kind"] != "compute")
    text += [f"| {' | '.join(str(line[name]) for name in columns)} |" for line in talk]
    layers = {line["tokens"]: line["us"] for line in lines if line["kind"] == "compute"}
    for tokens, us in layers.items():
        text += ["", f"T = {tokens}, a layer's products {us:g} us on one rank:", ""]
        text += ["| ranks | " + " | ".join(link.name for link in LINKS) + " |", "|---|---|---|"]
        for ranks in (1, 2, 4, 8, 16, 32, 64):
            cells = " | ".join(f"{token_us(ranks, tokens, link, us) / 1000:.2f}" for link in LINKS)
            text.append(f"| {ranks} | {cells} |")
    return "\n".join(text)


if __name__ == "__main__":
    read = [json.loads(line) for name in sys.argv[1:] for line in Path(name).read_text().splitlines() if line]
    sys.stdout.write(tables(read) + "\n")
