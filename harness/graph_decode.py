"""Decode as one CUDA graph: a step of a fixed number of sequences, captured once and replayed for each token."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from minimax_m2.harness.cuda_graph import captured, on_a_stream
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.paging import Batch, PagedCache


class StaticStep:
    """A step of up to ``sequences`` sequences, one token each and ``max_seq_len`` keys, in memory that stays in place.

    It is run as it is made on slots -1, where nothing is stored, and on no keys. Where fewer sequences come, the rest
    stays so. Every attention group brings ``sequences`` tokens, padding included, so that no rank asks another for its
    number: groups of different lengths, and idle ones, all take part.

    capture  layers whose streams ``states`` holds, as EAGLE3's draft takes them
    """

    def __init__(
        self, model: MiniMaxM2, cache: PagedCache, *, sequences: int, max_seq_len: int, capture: Collection[int] = ()
    ) -> None:
        device = model.device
        pages = -(-max_seq_len // cache.page_size)
        self.model, self.cache, self._capture = model, cache, capture
        self.ids = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.batch = Batch(
            positions=torch.zeros(sequences, dtype=torch.int64, device=device),
            slots=torch.full((sequences,), -1, dtype=torch.int64, device=device),
            block_table=torch.full((sequences, pages), -1, dtype=torch.int32, device=device),
            seq_lens=torch.zeros(sequences, dtype=torch.int32, device=device),
            query_start=torch.arange(sequences + 1, dtype=torch.int32, device=device),
            last_rows=torch.arange(sequences, device=device),
            max_query_len=1,
            max_seq_len=max_seq_len,
        )
        self._tokens = [sequences] * model.layout.dp
        # A longer sequence elsewhere makes the model another table; a captured step goes on reading this one.
        self._table = model.cos_sin(max_seq_len)
        self.run()

    def run(self) -> None:
        """Compute ``logits [sequences, V]`` and ``states`` of what lies in the memory, without a look at a value."""
        self.logits, self.states = self.model.unchecked_step(
            self.ids, self.batch, self.cache, rows=None, capture=self._capture, tokens=self._tokens
        )

    def fill(self, ids: Tensor, batch: Batch) -> int:
        """Bring one token of each sequence, ids ``[B]``, into the memory, and return B.

        Raises ValueError for a batch that it cannot hold.
        """
        held, count = self.batch, len(ids)
        if (
            count > len(self.ids)
            or len(batch.seq_lens) != count
            or batch.max_query_len > 1
            or batch.max_seq_len > held.max_seq_len
        ):
            raise ValueError(
                f"{count} tokens of {len(batch.seq_lens)} sequences, up to {batch.max_query_len} of a sequence of "
                f"{batch.max_seq_len} keys; held: {len(self.ids)} sequences of one token and {held.max_seq_len} keys"
            )
        width, rest = held.block_table.shape[1] - batch.block_table.shape[1], len(self.ids) - count
        pad = torch.nn.functional.pad
        self.ids.copy_(pad(ids, (0, rest)))
        held.positions.copy_(pad(batch.positions, (0, rest)))
        held.slots.copy_(pad(batch.slots, (0, rest), value=-1))
        held.seq_lens.copy_(pad(batch.seq_lens, (0, rest)))
        held.block_table.copy_(pad(batch.block_table, (0, width, 0, rest), value=-1))
        return count

    def step(self, ids: Tensor, batch: Batch) -> Tensor:
        """Run one token of each sequence: ids ``[B]``, ``batch`` of the cache; returns logits ``[B, V]``.

        Logits and ``states`` are overwritten by the next step; rows of ``states`` from B on are padding.
        """
        count = self.fill(ids, batch)
        self.run()
        return self.logits[:count]


class GraphDecoder(StaticStep):
    """A static step as a CUDA graph, captured on no keys and replayed for every token."""

    def __init__(
        self, model: MiniMaxM2, cache: PagedCache, *, sequences: int, max_seq_len: int, capture: Collection[int] = ()
    ) -> None:
        super().__init__(model, cache, sequences=sequences, max_seq_len=max_seq_len, capture=capture)
        on_a_stream(self.run)
        self.graph, _ = captured(self.run)
        self._captured = self.logits, self.states

    def step(self, ids: Tensor, batch: Batch) -> Tensor:
        """Replay the step; logits and states lie in the graph's memory."""
        count = self.fill(ids, batch)
        self.graph.replay()
        # A run without the graph, which tests hold it against, leaves its own results here.
        self.logits, self.states = self._captured
        return self.logits[:count]
