"""Sums over the GPUs of a host by PyTorch's symmetric memory: every GPU reads the others' parts where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator

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
            # Here, because most machines have no GPU to share the memory of.
            from torch.distributed import _symmetric_memory as symmetric

            group = getattr(self.inner, "group", None) or torch.distributed.group.WORLD
            assert group is not None, "a communicator of real ranks has a group"
            buffer = symmetric.empty(MOST_BYTES // dtype.itemsize, dtype=dtype, device=torch.device("cuda"))
            symmetric.rendezvous(buffer, group.group_name)
            self._buffers[dtype] = (buffer, group.group_name)
        return self._buffers[dtype]
