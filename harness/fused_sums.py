"""Ops that sum over the GPUs of a host inside their kernels, as a table for the one model.

A layer's three sums over heads, statistics of q and k, o_proj and experts, become parts of ``qk_norm_rope_cache`` and
``add_rms_norm``: no launch and no copy of their own. Kernels write to each other's memory (``kernels/gpu/mailbox.py``).
What is larger than a mailbox is summed by the communicator, before the plain op.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.providers.ours import gpu_toolkit, gpu_unit
from minimax_m2.harness.roll_call import Hang
from minimax_m2.harness.symmetric import shared_mailbox
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.table import Op, OpTable


class Places:
    """Numbers of what is summed, the same on all ranks whatever they summed before: hashes of labels."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._labels: dict[int, str] = {}

    def of(self, label: str) -> int:
        """The number of a label, which is not 0."""
        number = zlib.crc32(label.encode()) % (self._count - 1) + 1
        self._labels[number] = label
        return number

    def label(self, number: int) -> str:
        """The label of a number that this rank has come to."""
        return self._labels.get(number, f"a sum that this rank never came to ({number})")


class FusedSums:
    """The ops of a rank, and the mailboxes that they sum through: one for rows, one for statistics.

    ranks      the line of ranks that share heads; a GPU each, on one host
    patience_s how long a kernel waits for another rank's row before it gives up: the row is NaN, and
               ``raise_if_missing`` names the rank

    All ranks make it at the same time. Raises ValueError where the ranks or this machine cannot sum so.
    """

    def __init__(
        self, ops: OpTable, ranks: Communicator, config: MiniMaxM2Config, *, dtype: torch.dtype = torch.bfloat16,
        patience_s: float = 10.0,
    ) -> None:  # fmt: skip
        if ranks.size < 2:
            raise ValueError("one rank has nobody to sum with; sums=fused needs ranks=2 or more")
        if gpu_toolkit().compiler() is None:
            raise ValueError("no nvcc: sums inside norms are CUDA C++; put it on the path, or set NVCC")
        box, norm, rope = (gpu_unit(stem) for stem in ("mailbox", "sum_add_rms_norm", "sum_qk_norm_rope_cache"))
        if not norm.fits(config.hidden_size, dtype):
            raise ValueError(f"rows of {config.hidden_size} {dtype} cannot be cut into runs of {norm.CHUNK} bytes")
        self._ranks, self._patience_s = ranks, patience_s
        self._places = Places(box.PLACES)
        widths = (norm.words_of(config.hidden_size, dtype), rope.WORDS)
        self._boxes = [shared_mailbox(ranks, words, patience_s=patience_s) for words in widths]
        rows, statistics = self._boxes
        self.table = replace(
            ops,
            add_rms_norm=SummingNorm(ops.add_rms_norm, norm.sum_add_rms_norm, rows, ranks, self._places),
            qk_norm_rope_cache=SummingRope(
                ops.qk_norm_rope_cache,
                rope.sum_qk_norm_rope_cache,
                statistics,
                ranks,
                self._places,
                sums=ops.qk_sum_squares,
            ),
            sources={
                **ops.sources,
                **dict.fromkeys(("add_rms_norm", "qk_norm_rope_cache"), "ours, summing over ranks"),
            },
        )

    def raise_if_missing(self) -> None:
        """Wait for the device; raise Hang, which names the rank that a kernel gave up, and what it waited for."""
        for box in self._boxes:
            if (missing := box.given_up()) is not None:
                where = self._places.label(missing.place)
                instead = "has not come to it"
                if missing.elsewhere is not None:
                    instead = f"came to {self._places.label(missing.elsewhere)}"
                raise Hang(
                    f"HANG: rank {self._ranks.rank} waited {self._patience_s:g} s in the kernel that sums {where} for "
                    f"rank {missing.rank}: rank {missing.rank} {instead}"
                )


@dataclass(frozen=True, slots=True)
class Summing:
    """An op in whose kernel ranks sum through a mailbox, and the plain one for more rows than a mailbox holds."""

    plain: Op
    fused: Op
    box: Any
    ranks: Communicator
    places: Places

    @property
    def sums_over(self) -> int:
        """Ranks that bring a part of the sum."""
        return self.ranks.size


@dataclass(frozen=True, slots=True)
class SummingNorm(Summing):
    """``add_rms_norm`` of the sum over ranks of x."""

    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, label: str
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if x.shape[0] > self.box.rows:
            y, stream = self.plain(self.ranks.all_reduce(x, label=label), residual, weight, eps=eps)
        else:
            y, stream = self.fused(x, residual, weight, self.box, eps=eps, place=self.places.of(label))
        return y, stream


@dataclass(frozen=True, slots=True)
class SummingRope(Summing):
    """``qk_norm_rope_cache`` with the statistics of all ranks' heads, which ``sums`` gives of one rank's."""

    sums: Op

    def __call__(
        self, qkv: Tensor, stats: None, *given: Tensor, label: str, counted_kv_heads: int | None, **sizes: Any
    ) -> Tensor:  # fmt: skip
        if qkv.shape[0] > self.box.rows:
            heads = {name: sizes[name] for name in ("num_heads", "num_kv_heads", "head_dim")}
            local = self.sums(qkv, **heads, counted_kv_heads=counted_kv_heads)
            query: Tensor = self.plain(qkv, self.ranks.all_reduce(local, label=label), *given, **sizes)
        else:
            more = {"counted_kv_heads": counted_kv_heads, "place": self.places.of(label)}
            query = self.fused(qkv, *given, self.box, **more, **sizes)
        return query
