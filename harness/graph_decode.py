"""Decode as one CUDA graph: a step of a fixed number of sequences, captured once and replayed for each token."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.paging import Batch, PagedCache


class GraphDecoder:
    """A captured step of ``sequences`` sequences, one token each, up to ``max_seq_len`` keys.

    The step is warmed up and captured on slots -1, where nothing is stored, and on no keys.
    """

    def __init__(self, model: MiniMaxM2, cache: PagedCache, *, sequences: int, max_seq_len: int) -> None:
        device = model.device
        pages = -(-max_seq_len // cache.page_size)
        self._ids = torch.zeros(sequences, dtype=torch.int64, device=device)
        self._batch = Batch(
            positions=torch.zeros(sequences, dtype=torch.int64, device=device),
            slots=torch.full((sequences,), -1, dtype=torch.int64, device=device),
            block_table=torch.full((sequences, pages), -1, dtype=torch.int32, device=device),
            seq_lens=torch.zeros(sequences, dtype=torch.int32, device=device),
            query_start=torch.arange(sequences + 1, dtype=torch.int32, device=device),
            last_rows=torch.arange(sequences, device=device),
            max_query_len=1,
            max_seq_len=max_seq_len,
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model.unchecked_step(self._ids, self._batch, cache, rows=None)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._logits, _ = model.unchecked_step(self._ids, self._batch, cache, rows=None)

    def step(self, ids: Tensor, batch: Batch) -> Tensor:
        """Run one token of each sequence: ids ``[B]``, ``batch`` of the captured cache; returns logits ``[B, V]``.

        The logits lie in the graph's memory and last until the next step. Raises ValueError for a batch that the
        captured one cannot hold.
        """
        captured = self._batch
        if len(ids) != len(self._ids) or batch.max_query_len != 1 or batch.max_seq_len > captured.max_seq_len:
            raise ValueError(
                f"{len(ids)} tokens, up to {batch.max_query_len} of a sequence of {batch.max_seq_len} keys; captured: "
                f"{len(self._ids)} sequences of one token and {captured.max_seq_len} keys"
            )
        width = captured.block_table.shape[1] - batch.block_table.shape[1]
        wide = replace(batch, block_table=torch.nn.functional.pad(batch.block_table, (0, width), value=-1))
        self._ids.copy_(ids)
        for name in (f.name for f in fields(captured)):
            if isinstance(target := getattr(captured, name), Tensor):
                target.copy_(getattr(wide, name))
        self.graph.replay()
        return self._logits
