"""Who owns what when a model is split over ranks: heads, expert widths, experts, vocabulary.

Every split is a ``Cut``: which stretches of a dimension a rank holds, and where zeros stand in for what the model does
not have. Zeros are neutral: a zero head is a row that the norm leaves zero, a zero width adds nothing. Shares of one
kind are equally large on all ranks; the last ones may hold zeros only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config

WIDTHS = {"reblock": 32, "pad": 128, "ep": None}
"""How the width of an expert is cut, by name: in multiples of so many columns, or not at all.

reblock  narrow shares, whose FP8 scales get finer blocks where a share straddles one of 128
pad      whole blocks of 128; zeros fill the last shares
ep       experts stay whole, each on one rank; ``ep`` is then the number of all ranks
"""

DISPATCHES = ("gather", "all_to_all")


class Span(NamedTuple):
    """A rank's stretch ``start..stop`` of a dimension, zeros filling it up to ``size``."""

    start: int
    stop: int
    size: int


class Cut(NamedTuple):
    """What a rank holds of one dimension: pieces ``(start, length)`` one after the other, start -1 for zeros."""

    pieces: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Length of the dimension on the rank."""
        return sum(length for _, length in self.pieces)

    @property
    def merged(self) -> Cut:
        """The same cut in as few pieces as it takes: neighbours are one."""
        found: list[tuple[int, int]] = []
        for start, length in self.pieces:
            before = found[-1] if found else (0, 0)
            if found and start >= 0 and before[0] >= 0 and sum(before) == start:
                found[-1] = (before[0], before[1] + length)
            else:
                found.append((start, length))
        return Cut(tuple(found))

    @property
    def sources(self) -> Tensor:
        """Where each local place comes from, ``[size]`` int64; -1 for zeros."""
        none = torch.empty(0, dtype=torch.int64)
        runs = [torch.arange(s, s + n) if s >= 0 else torch.full((n,), -1) for s, n in self.pieces]
        return torch.cat([none, *runs])


class Heads(NamedTuple):
    """A rank's heads by their numbers in the model, -1 for a zero head.

    Query heads stand in groups of equal size, one after the other a local key/value head. True heads come before
    zero heads. ``counted_kv_heads`` is how many of the key/value heads enter this rank's sum of squares of k: a
    replica's do not, so that the sum over ranks is the model's.
    """

    query: tuple[int, ...]
    kv: tuple[int, ...]
    counted_kv_heads: int


def span(count: int, *, parts: int, index: int, multiple: int = 1) -> Span:
    """Cut ``count`` into ``parts`` equally large stretches, multiples of ``multiple``, and return number ``index``."""
    if not 0 <= index < parts:
        raise ValueError(f"index={index} is outside 0..{parts - 1}, the parts of a dimension of {count}")
    size = -(-count // (parts * multiple)) * multiple
    start = min(index * size, count)
    return Span(start, min(start + size, count), size)


def heads(num_heads: int, num_kv_heads: int, *, tp: int, rank: int) -> Heads:
    """Deal heads to ``tp`` ranks, any number of them.

    Up to one rank a key/value head, a rank holds whole groups: its key/value heads with all their query heads. Beyond,
    rank r holds a replica of key/value head ``r * Hk // tp``, and the query heads of the group are dealt to its
    replicas in turn.
    """
    group = num_heads // num_kv_heads
    if tp <= num_kv_heads:
        own = span(num_kv_heads, parts=tp, index=rank)
        kv = _padded(range(own.start, own.stop), own.size)
        query = [head * group + i if head >= 0 else -1 for head in kv for i in range(group)]
        return Heads(tuple(query), kv, own.stop - own.start)
    head = rank * num_kv_heads // tp
    replicas = [r for r in range(tp) if r * num_kv_heads // tp == head]
    own = span(group, parts=len(replicas), index=replicas.index(rank))
    # Replicas are fewest where ranks divide worst; all ranks take the largest share.
    widest = -(-group // (tp // num_kv_heads))
    first = head * group
    return Heads(_padded(range(first + own.start, first + own.stop), widest), (head,), int(rank == replicas[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a rank stands among ``tp * dp``, which are numbered through the attention groups.

    tp       ranks that share the heads of one attention group, its batch and its vocabulary
    dp       attention groups, each with a batch of its own
    ep       groups of experts; the ``tp * dp // ep`` ranks of each share the width of its experts
    widths   how that width is cut: ``reblock``, ``pad`` or ``ep``
    dispatch how tokens meet experts: ``gather`` shows all tokens to all ranks, ``all_to_all`` sends each to the ranks
             of its experts, which stay whole
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    rank: int = 0
    widths: str = "reblock"
    dispatch: str = "gather"
    vocab_multiple: int = 64

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "ep", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 1")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank} is outside 0..{self.world - 1}: tp={self.tp} times dp={self.dp}")
        if self.world % self.ep:
            raise ValueError(f"ep={self.ep} does not divide the {self.world} ranks of tp={self.tp}, dp={self.dp}")
        if self.widths not in WIDTHS:
            raise ValueError(f"widths={self.widths!r} is unknown; use {', '.join(WIDTHS)}")
        if self.dispatch not in DISPATCHES:
            raise ValueError(f"dispatch={self.dispatch!r} is unknown; use {', '.join(DISPATCHES)}")
        for name, keeps_whole in (("widths", WIDTHS[self.widths] is None), ("dispatch", self.dispatch != "gather")):
            if keeps_whole and self.ep != self.world:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} keeps experts whole: ep={self.ep} must be the number of ranks, "
                    f"{self.world}"
                )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.dp

    @property
    def tp_rank(self) -> int:
        """Place within the attention group."""
        return self.rank % self.tp

    @property
    def dp_rank(self) -> int:
        """Number of the attention group."""
        return self.rank // self.tp

    @property
    def expert_tp(self) -> int:
        """Ranks that share the width of an expert."""
        return self.world // self.ep

    def heads(self, config: MiniMaxM2Config) -> Heads:
        """Return this rank's heads."""
        return heads(config.num_attention_heads, config.num_key_value_heads, tp=self.tp, rank=self.tp_rank)

    def experts(self, config: MiniMaxM2Config) -> Span:
        """Return this rank's experts; neighbours in ``expert_tp`` hold the same ones."""
        return span(config.num_local_experts, parts=self.ep, index=self.rank // self.expert_tp)

    def width(self, config: MiniMaxM2Config) -> Span:
        """Return this rank's columns of each of its experts."""
        multiple = WIDTHS[self.widths] if self.expert_tp > 1 else None
        index = self.rank % self.expert_tp
        return span(config.intermediate_size, parts=self.expert_tp, index=index, multiple=multiple or 1)

    def vocabulary(self, config: MiniMaxM2Config) -> Span:
        """Return this rank's rows of embedding and head; a rank alone in its group holds all, without padding."""
        multiple = self.vocab_multiple if self.tp > 1 else 1
        return span(config.vocab_size, parts=self.tp, index=self.tp_rank, multiple=multiple)


def head_cut(which: Sequence[int], *, head_dim: int, offset: int = 0) -> Cut:
    """Return the channels of heads, in a dimension where head 0 begins at ``offset``."""
    return Cut(tuple((offset + head * head_dim if head >= 0 else -1, head_dim) for head in which))


def span_cut(own: Span, *, offset: int = 0) -> Cut:
    """Return a stretch and the zeros behind it, in a dimension where it counts from ``offset``."""
    length = own.stop - own.start
    pieces = ((offset + own.start, length), (-1, own.size - length))
    return Cut(tuple(piece for piece in pieces if piece[1]))


def joined(*cuts: Cut) -> Cut:
    """Put cuts of one dimension one after the other."""
    return Cut(tuple(piece for cut in cuts for piece in cut.pieces))


def cut(x: Tensor, which: Cut, *, dim: int) -> Tensor:
    """Return a rank's share of ``x`` as memory of its own; one-byte floats included."""
    # Not every operation knows every float of one byte; all of them write 0.0 as the byte 0.
    codes = x.view(torch.uint8) if x.dtype.itemsize == 1 else x
    parts = [
        codes.narrow(dim, start, length)
        if start >= 0
        else codes.new_zeros(*codes.shape[:dim], length, *codes.shape[dim:][1:])
        for start, length in which.pieces
    ]
    share = torch.cat([codes.narrow(dim, 0, 0), *parts], dim)
    return share.view(x.dtype)


def _padded(which: Sequence[int], size: int) -> tuple[int, ...]:
    return (*which, *[-1] * (size - len(which)))
