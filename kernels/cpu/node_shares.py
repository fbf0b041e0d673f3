"""Memory nodes (NUMA) of this machine, and packed weights that lie where they are read.

Every node owns a share of each weight's blocks (``node_shares.h``). Packing touches those from threads of that node
before anything is written, so that Linux keeps them in its memory; kernels let a node's threads read its own blocks
first. On a machine of one node nothing of this happens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

# As node_shares.h has them.
MAX_NODES, MAX_NODE_IDS = 16, 64
SYSFS = Path("/sys/devices/system/node")


class _NodeView(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("pretended", ctypes.c_int32),
        ("index_of", ctypes.c_int32 * MAX_NODE_IDS),
    )


def listed(text: str) -> frozenset[int]:
    """Read a list of Linux: ``0-2,5`` names 0, 1, 2 and 5."""
    spans = (part.partition("-") for part in text.strip().split(",") if part)
    return frozenset(n for first, _, last in spans for n in range(int(first), int(last or first) + 1))


def usable(processors: Mapping[int, frozenset[int]], allowed: frozenset[int]) -> tuple[int, ...]:
    """The nodes with a processor that this process may run on, by number: nobody would read the others' shares."""
    return tuple(sorted(node for node, own in processors.items() if own & allowed and node < MAX_NODE_IDS))


def nodes() -> tuple[int, ...]:
    """The memory nodes of this machine that count; where Linux tells of none, one."""
    files = {int(path.parent.name.removeprefix("node")): path for path in SYSFS.glob("node[0-9]*/cpulist")}
    if not files:
        return (0,)
    processors = {node: listed(path.read_text()) for node, path in files.items()}
    return usable(processors, frozenset(os.sched_getaffinity(0))) or (0,)


def view_address() -> int:
    """Address of what every library that reads packed weights is told; the first call looks at the machine."""
    if _view.count == 0:
        found = nodes()
        _view.count = min(len(found), MAX_NODES)
        for index, node in enumerate(found):
            _view.index_of[node] = index % _view.count
    return ctypes.addressof(_view)


def count() -> int:
    """How many nodes share the weights."""
    view_address()
    return int(_view.count)


@contextmanager
def pretended(nodes: int) -> Iterator[None]:
    """Share weights among so many nodes inside the block, with the threads of a team dealt out to them in order.

    Raises ValueError for what is no number of nodes.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"nodes={nodes} is outside 1..{MAX_NODES}; pretend as many as a machine may have")
    view_address()
    before = _view.count, _view.pretended
    _view.count, _view.pretended = nodes, 1
    try:
        yield
    finally:
        _view.count, _view.pretended = before


def touch_first(x: Tensor, library: ctypes.CDLL) -> None:
    """Have threads of the owning nodes touch ``x``, contiguous ``[matrices, blocks, ...]`` that nobody has written yet.

    ``library`` is that of an op whose binding includes ``node_shares_binding.h``. The first byte of a page becomes 0.
    """
    matrices, blocks = x.shape[:2]
    if x.numel():
        each = x.nbytes // (matrices * blocks)
        sizes = (ctypes.c_int64(size) for size in (matrices, blocks, each, mmap.PAGESIZE))
        library.minimax_m2_touch_first(ctypes.c_void_p(x.data_ptr()), *sizes)


_view = _NodeView()
