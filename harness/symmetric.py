"""Sums over the GPUs of a host by PyTorch's symmetric memory: every GPU reads the others' parts where they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.providers.ours import gpu_unit
from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator, Distributed

# Above it each GPU would read more than a ring sends: two shots, or the ring, are faster (docs/parallel.md).
MOST_BYTES = 1 << 18


class Symmetric(Relay):
    """Adds tensors of up to ``MOST_BYTES`` in one launch, in the order of the ranks; all else is ``inner``'s.

    The first sum of a dtype allocates, so it comes before any capture.
    """

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._buffers: dict[torch.dtype, tuple[Tensor, str]] = {}

    def call(self, kind: str, payload: Any, label: str) -> Any:
        """Call the collective, the small sums among them by peers' memory."""
        if kind != "all_reduce" or not self.takes(payload):
            return super().call(kind, payload, label)
        buffer, group = self._buffer(payload.dtype)
        sent = payload.contiguous()
        there = buffer[: sent.numel()].view(sent.shape)
        return torch.ops.symm_mem.one_shot_all_reduce_copy(there, sent, "sum", group)

    def takes(self, x: Tensor) -> bool:
        """Whether a sum goes by peers' memory: of more than one rank, not empty, and small."""
        return self.size > 1 and 0 < x.nbytes <= MOST_BYTES and x.dtype in (torch.bfloat16, torch.float32)

    def _buffer(self, dtype: torch.dtype) -> tuple[Tensor, str]:
        if dtype not in self._buffers:
            shared = shared_memory(self.inner, MOST_BYTES // dtype.itemsize, dtype)
            self._buffers[dtype] = (shared.buffer, shared.group)
        return self._buffers[dtype]


class Shared(NamedTuple):
    """Zeroed memory that all ranks of a group see: this rank's, and where each rank's lies as this one sees it."""

    buffer: Tensor
    addresses: tuple[int, ...]
    group: str


def shared_memory(communicator: Communicator, count: int, dtype: torch.dtype) -> Shared:
    """Allocate ``count`` elements on each rank's GPU; all ranks call it, before any capture.

    Raises ValueError for ranks that are no processes with a GPU each.
    """
    # Here, because most machines have no GPU to share the memory of.
    from torch.distributed import _symmetric_memory as symmetric

    inner = communicator
    while isinstance(inner, Relay):
        inner = inner.inner
    backend = torch.distributed.get_backend(inner.group) if isinstance(inner, Distributed) else ""
    if not isinstance(inner, Distributed) or backend != "nccl":
        over = f"{type(inner).__name__}{f' over {backend}' if backend else ''}"
        raise ValueError(
            f"{over} has no GPUs that see each other's memory; each rank needs a GPU of one host, and NCCL"
        )
    group = inner.group or torch.distributed.group.WORLD
    assert group is not None, "ranks that are processes have a group"
    buffer = symmetric.empty(count, dtype=dtype, device=torch.device("cuda", torch.cuda.current_device()))
    buffer.zero_()
    # A peer may write as soon as it knows the address.
    torch.cuda.synchronize()
    handle = symmetric.rendezvous(buffer, group.group_name)
    return Shared(buffer, tuple(handle.buffer_ptrs), group.group_name)


def shared_mailbox(communicator: Communicator, words: int, *, patience_s: float) -> Any:
    """A rank's mailbox for rows of so many words, in memory that all ranks of the communicator see."""
    box = gpu_unit("mailbox")
    shared = shared_memory(communicator, box.box_bytes(communicator.size, box.MOST_ROWS, words) // 8, torch.int64)
    return box.mailbox(
        shared.buffer, shared.addresses, rank=communicator.rank, rows=box.MOST_ROWS, words=words, patience_s=patience_s
    )
