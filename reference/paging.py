"""A paged key/value cache and the batches that are laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Where the T tokens of one step belong: the arguments that attention and the cache take.

    Tokens of a sequence are neighbours; sequences may bring different numbers of tokens, or none.
    """

    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64, page * page_size + offset
    block_table: Tensor  # [B, pages] int32, -1 beyond a sequence's pages
    seq_lens: Tensor  # [B] int32, keys after this step
    query_start: Tensor  # [B + 1] int32
    last_rows: Tensor  # [n] int64, the last token of every sequence that brought one
    max_query_len: int
    max_seq_len: int


@dataclass(slots=True)
class PagedCache:
    """Keys and values of every layer, ``[pages, page_size, Hk, D]``, and the pages each sequence holds.

    Fresh pages hold NaN, so whatever reads past a sequence's end shows at once.
    """

    k: list[Tensor]
    v: list[Tensor]
    page_size: int
    _free: list[int] = field(default_factory=list)
    _pages: dict[int, list[int]] = field(default_factory=dict)
    _lengths: dict[int, int] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        config: MiniMaxM2Config,
        *,
        num_pages: int,
        page_size: int = 16,
        num_kv_heads: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> PagedCache:
        """Allocate ``num_pages`` pages a layer; ``num_kv_heads`` is a rank's share where it is not all."""
        if num_pages < 0 or page_size < 1:
            raise ValueError(f"num_pages={num_pages}, page_size={page_size}; expected at least 0 and 1")
        shape = (num_pages, page_size, num_kv_heads or config.num_key_value_heads, config.head_dim)
        k, v = (
            [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
            for _ in range(2)
        )
        # Last page first: a sequence's pages are then not in ascending order, as in a server that has run for a while.
        return cls(k=k, v=v, page_size=page_size, _free=list(range(num_pages)))

    def length(self, sequence: int) -> int:
        """Return how many tokens of ``sequence`` are stored; 0 for one never seen."""
        return self._lengths.get(sequence, 0)

    def append(self, counts: Mapping[int, int]) -> Batch:
        """Reserve slots for ``counts[sequence]`` more tokens of each sequence and lay the batch over them.

        Raises ValueError, before anything is reserved, if the free pages do not suffice.
        """
        starts = {sequence: self.length(sequence) for sequence in counts}
        ends = {sequence: starts[sequence] + count for sequence, count in counts.items()}
        missing = {s: -(-end // self.page_size) - len(self._pages.get(s, [])) for s, end in ends.items()}
        if sum(missing.values()) > len(self._free):
            raise ValueError(
                f"{sum(missing.values())} pages of {self.page_size} tokens are needed, {len(self._free)} are free; "
                "release a sequence or allocate more pages"
            )
        for sequence, end in ends.items():
            self._pages.setdefault(sequence, []).extend(self._free.pop() for _ in range(missing[sequence]))
            self._lengths[sequence] = end
        return self._batch(starts, ends)

    def truncate(self, sequence: int, tokens: int) -> None:
        """Forget what ``sequence`` holds beyond its first ``tokens`` tokens, as of a rejected draft; free their pages.

        Raises ValueError if it holds fewer.
        """
        if not 0 <= tokens <= self.length(sequence):
            raise ValueError(f"tokens={tokens} is outside 0..{self.length(sequence)}, what sequence {sequence} holds")
        pages, kept = self._pages.get(sequence, []), -(-tokens // self.page_size)
        self._free.extend(reversed(pages[kept:]))
        del pages[kept:]
        if sequence in self._lengths:
            self._lengths[sequence] = tokens

    def release(self, sequence: int) -> None:
        """Give the pages of ``sequence`` back."""
        self._free.extend(self._pages.pop(sequence, []))
        self._lengths.pop(sequence, None)

    def _batch(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> Batch:
        device = self.k[0].device
        pages = {sequence: torch.tensor(self._pages[sequence], dtype=torch.int64) for sequence in ends}
        positions = {s: torch.arange(starts[s], ends[s]) for s in ends}
        slots = [pages[s][p // self.page_size] * self.page_size + p % self.page_size for s, p in positions.items()]
        counts = torch.tensor([0, *(len(p) for p in positions.values())])
        query_start = counts.cumsum(0)
        width = max((len(row) for row in pages.values()), default=0)
        table = torch.full((len(ends), width), -1, dtype=torch.int32)
        for row, sequence in enumerate(ends):
            table[row, : len(pages[sequence])] = pages[sequence].to(torch.int32)
        none = torch.empty(0, dtype=torch.int64)
        return Batch(
            positions=torch.cat([none, *positions.values()]).to(device),
            slots=torch.cat([none, *slots]).to(device),
            block_table=table.to(device),
            seq_lens=torch.tensor(list(ends.values()), dtype=torch.int32, device=device),
            query_start=query_start.to(torch.int32).to(device),
            last_rows=(query_start[1:] - 1)[counts[1:] > 0].to(device),
            max_query_len=int(counts.max()),
            max_seq_len=max(ends.values(), default=0),
        )
