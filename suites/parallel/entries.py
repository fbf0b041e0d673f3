"""What the suites launch on real ranks: each entry runs in a process of its own."""

from __future__ import annotations

import json
import os
import signal

import torch

from minimax_m2.harness.parallel import Split, difference_of, rank_outcome
from minimax_m2.reference.communicator import Communicator


def collectives(communicator: Communicator) -> list[list[float]]:
    """Every collective, of the whole group and along the lines of a grid, on small integers."""
    x = torch.arange(communicator.size * 2.0).reshape(-1, 1) + 100 * communicator.rank
    parts = [x[: communicator.rank + to] for to in range(communicator.size)]
    lines = communicator.grid((communicator.size, 1))
    found = [communicator.all_reduce(x), communicator.all_gather(x), communicator.reduce_scatter(x)]
    found += [*communicator.all_to_all(parts), *(line.all_gather(x) for line in lines)]
    return [each.flatten().tolist() for each in found]


def skipping(communicator: Communicator) -> None:
    """The last rank stays away from the second sum."""
    communicator.all_reduce(torch.ones(1), label="embedding")
    if communicator.rank < communicator.size - 1:
        communicator.all_reduce(torch.ones(1), label="o_proj of layer 3")


def dying(communicator: Communicator) -> None:
    """Rank 1 is killed before the second sum."""
    communicator.all_reduce(torch.ones(1), label="embedding")
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.all_reduce(torch.ones(1), label="o_proj of layer 3")


def reordering(communicator: Communicator) -> float:
    """Rank 1 makes two sums change places: of the same shape, so that nothing else would notice."""
    labels = ["statistics of layer 3", "o_proj of layer 3"]
    for label in reversed(labels) if communicator.rank == 1 else labels:
        communicator.all_reduce(torch.full((1,), float(len(label))), label=label)
    return 0.0


def raising(communicator: Communicator) -> None:
    """Rank 0 fails on its own, and the others wait for it."""
    if communicator.rank == 0:
        raise KeyError("experts.7.w1")
    communicator.all_reduce(torch.ones(1), label="embedding")


def every_layout(communicator: Communicator) -> str:
    """Split models over all ranks by heads, by experts both ways, and by batches with idle groups; on GPUs if there."""
    ranks = communicator.size
    idle = ((2, 3), *((1, rank % 2) for rank in range(1, ranks)))
    splits = [
        Split(config="groups of 3", tp=ranks, tokens=((2, 5),)),
        Split(config="groups of 3", tp=ranks, ep=ranks, tokens=((2, 5),)),
        Split(config="heads alone", tp=ranks, ep=ranks, dispatch="all_to_all", tokens=((2, 5),)),
        Split(config="heads alone", tp=1, dp=ranks, ep=ranks, dispatch="all_to_all", tokens=idle),
        Split(config="groups of 3", tp=1, dp=ranks, tokens=idle[::-1]),
        Split(config="groups of 3", tp=ranks, tokens=((1, 0),)),
    ]
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    told = [
        difference_of(split, communicator.rank, rank_outcome(split, communicator, device=device)) for split in splits
    ]
    wrong = [text for text in told if text]
    # Every rank must agree that nothing differs.
    count = communicator.all_reduce(torch.tensor([len(wrong)], device=device), label="verdicts")
    backend, name = torch.distributed.get_backend(), torch.cuda.get_device_name() if device == "cuda" else "cpu"
    said = {"ranks": ranks, "backend": backend, "device": name, "torch": torch.__version__, "splits": len(splits)}
    return json.dumps({**said, "wrong": int(count), "differences": wrong})
