"""Real ranks, a process each, over torch's elastic launcher and process groups: gloo, NCCL or HCCL.

``launch`` starts them on this machine, on its CPU or on a GPU or NPU each. On several,
``torchrun --nnodes ... -m minimax_m2.harness.ranks ENTRY`` runs the same entry on every rank. An entry is named
``package.module:function`` or ``file.py:function``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from minimax_m2.harness.devices import DEVICES, absence, torch_device
from minimax_m2.harness.roll_call import RollCall, Store, last_call
from minimax_m2.reference.communicator import Communicator, Distributed

Entry = Callable[..., Any]
"""Called as ``entry(communicator, *arguments)`` on every rank; what it returns must pickle."""

DEADLINE_S = 10.0
BACKENDS = {"cpu": "gloo", "gpu": "nccl", "npu": "hccl"}
# Its stores are public by the manual, and private by what type checkers see.
_STORES: Any = distributed
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class RanksFailed(RuntimeError):
    """Why a run of ranks ended: its text begins with HANG, CRASHED or RAISED."""


def shortage(device: str, ranks: int) -> str | None:
    """Why a device cannot hold so many ranks, or None where it can: a GPU or an NPU holds one each."""
    if device == "cpu":
        return None
    if (reason := absence(device)) is not None:
        return reason
    there = torch.get_device_module(torch_device(device)).device_count()
    return None if there >= ranks else f"{ranks} ranks need a {device} each, there are {there}"


def launch(
    entry: str, *arguments: Any, ranks: int, device: str = "cpu", deadline_s: float = DEADLINE_S
) -> list[Any]:  # fmt: skip
    """Run an entry on ``ranks`` processes and return what each returned, in their order.

    Raises ValueError where ``device`` cannot hold so many ranks, and RanksFailed: a rank that does not come to a
    collective within ``deadline_s`` is named with what it called last, and so is one whose process died. All processes
    have ended by then.
    """
    if (reason := shortage(device, ranks)) is not None:
        raise ValueError(reason)
    # Ranks are forked from a server that has imported torch, once, and done nothing else.
    multiprocessing.set_forkserver_preload([__name__])
    store = _STORES.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        returned = elastic_launch(config, _rank_main)(entry, arguments, store.port, deadline_s, device)
    except ChildFailedError as error:
        raise RanksFailed(_verdict(error, _board(store))) from None
    finally:
        # The launcher leaves its own behind, which would take the caller's interrupts.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return [returned[rank] for rank in range(ranks)]


def _verdict(error: ChildFailedError, board: Store) -> str:
    """The failure that came first; what follows are ranks that were left alone."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return f"CRASHED: rank {rank} was ended by {failure.signal_name()}; it {last_call(board, rank)}"
    said: Any = failure.message
    message = str(said["message"] if isinstance(said, dict) else said)
    text = message.removeprefix("Hang: ")
    return text if text.startswith("HANG") else f"RAISED: rank {rank}: {message}; it {last_call(board, rank)}"


@record
def _rank_main(entry: str, arguments: tuple[Any, ...], port: int, deadline_s: float, device: str) -> Any:
    with joined("127.0.0.1", port, deadline_s=deadline_s, device=device) as communicator:
        return _entry(entry)(communicator, *arguments)


@contextmanager
def joined(
    address: str, port: int, *, deadline_s: float = DEADLINE_S, device: str = "cpu"
) -> Iterator[Communicator]:  # fmt: skip
    """Join the process group that the launcher's environment names; the roll is called in the store at ``port``."""
    torch.set_num_threads(1)
    if device != "cpu":
        torch.get_device_module(torch_device(device)).set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(BACKENDS[device])
    try:
        store = _STORES.TCPStore(address, port, is_master=False)
        yield RollCall(Distributed(), _board(store), deadline_s=deadline_s)
    finally:
        # A rank that failed leaves without a word: the others are told by the launcher.
        if sys.exc_info()[0] is None:
            distributed.destroy_process_group()


def _board(store: Any) -> Store:
    """Where the roll is called: beside the keys of torch's own, whose store it may be."""
    return cast(Store, _STORES.PrefixStore("roll call", store))


def _entry(name: str) -> Entry:
    module, _, function = name.rpartition(":")
    found = (
        runpy.run_path(module)[function]
        if module.endswith(".py")
        else getattr(importlib.import_module(module), function)
    )
    return cast(Entry, found)


def device_of_ranks() -> str:
    """What torch calls the device of the ranks that this process is one of."""
    kinds = {backend: device for device, backend in BACKENDS.items()}
    return torch_device(kinds[distributed.get_backend()])


def _device() -> str:
    """The device that holds all ranks of this host, one each; else the CPU."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return next((device for device in DEVICES[1:] if shortage(device, local) is None), "cpu")


def main(arguments: list[str]) -> None:
    """Run one rank of ``torchrun``: an entry and its arguments, as strings."""
    entry, *given = arguments
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with joined(address, port, device=_device()) as communicator:
        found = _entry(entry)(communicator, *given)
        if communicator.rank == 0 and found is not None:
            sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    record(main)(sys.argv[1:])
