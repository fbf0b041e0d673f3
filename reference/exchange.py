"""What the ranks of a layout say to each other in a pass: sums over heads, tokens to their experts and back.

Every rank of an attention group holds the same tokens; groups hold different ones, in different numbers, some none.
A rank calls the same collectives however many tokens it has. What it calls an op for has at least one row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minimax_m2.reference.communicator import Communicator, Single
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout, span

Route = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x [T, H]`` -> weights and ids ``[T, K]``; id -1 is no expert."""

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x [T, H], weights [T, K], local ids [T, K]) -> [T, H]``: the sum of this rank's experts."""


class Exchange:
    """A rank's part in the collectives of its layout.

    norm_sums  rows of [T, H] are left unsummed over heads and widths: the norm that follows adds them up itself
    """

    def __init__(
        self, layout: Layout, config: MiniMaxM2Config, communicator: Communicator, *, norm_sums: bool = False
    ) -> None:
        if (communicator.rank, communicator.size) != (layout.rank, layout.world):
            raise ValueError(
                f"the communicator is rank {communicator.rank} of {communicator.size}, the layout rank {layout.rank} "
                f"of {layout.world} (tp={layout.tp}, dp={layout.dp})"
            )
        if norm_sums and layout.dispatch == "all_to_all":
            raise ValueError(
                "experts that travel by all_to_all come home summed; a norm that sums would add them twice"
            )
        self.layout = layout
        self.norm_sums = norm_sums
        self.world = communicator
        self.across, self.within = communicator.grid((layout.dp, layout.tp))
        self._experts = layout.experts(config)
        self._vocabulary = layout.vocabulary(config)
        self._vocab_size = config.vocab_size
        self._top_k = config.num_experts_per_tok

    @classmethod
    def alone(cls, config: MiniMaxM2Config) -> Exchange:
        """A model on one rank, which has nobody to talk to."""
        return cls(Layout(), config, Single())

    @property
    def is_alone(self) -> bool:
        """Whether this rank holds all heads."""
        return self.layout.tp == 1

    @property
    def vocab_start(self) -> int:
        """First row of this rank's embedding and head."""
        return self._vocabulary.start

    def tokens(self, x: Tensor) -> list[int]:
        """Ask how many tokens each attention group brings to this pass, where experts will gather them."""
        if self.layout.dp == 1 or self.layout.dispatch != "gather":
            return [x.shape[0]]
        own = torch.tensor([x.shape[0]], device=x.device)
        return [int(count) for count in self.across.all_gather(own, label="numbers of tokens").tolist()]

    def sum_statistics(self, stats: Tensor, *, layer: int) -> Tensor:
        """Sum the squares of q and k, ``[T, 2]``, over the heads of all ranks: one collective for both."""
        return stats if self.is_alone else self.within.all_reduce(stats, label=f"q and k statistics of layer {layer}")

    def sum_heads(self, y: Tensor, *, layer: int) -> Tensor:
        """Sum ``[T, H]`` over the heads of all ranks, unless the norm does."""
        return y if self.is_alone or self.norm_sums else self.within.all_reduce(y, label=f"o_proj of layer {layer}")

    def sum_vocabulary(self, rows: Tensor) -> Tensor:
        """Sum rows of the embedding, zero on all ranks but the one that has them."""
        return rows if self.is_alone else self.within.all_reduce(rows, label="embedding")

    def logits(self, local: Tensor) -> Tensor:
        """Put the columns of all ranks side by side, ``[N, V]``, without those that pad the vocabulary."""
        if self.is_alone:
            return local
        gathered = self.within.all_gather(local, label="logits")
        columns = gathered.reshape(self.layout.tp, *local.shape).movedim(0, 1).flatten(1)
        return columns[:, : self._vocab_size]

    def experts(
        self, x: Tensor, route: Route, compute: Compute, *, tokens: Sequence[int], layer: int
    ) -> Tensor:  # fmt: skip
        """Return ``[T, H]``, each token's sum over its experts, wherever they are; ``tokens`` as from ``tokens()``.

        Where the norm sums, it is this rank's part of that within its attention group.
        """
        if self.layout.dispatch == "all_to_all":
            return self._dispatched(x, route, compute, layer)
        return self._gathered(x, route, compute, tokens, layer)

    def _gathered(self, x: Tensor, route: Route, compute: Compute, tokens: Sequence[int], layer: int) -> Tensor:
        """All ranks see all tokens, and each adds what its experts, or its columns of them, make of them."""
        rows, longest = x, max(tokens)
        if self.layout.dp > 1:
            rows = self.across.all_gather(_padded(x, longest), label=f"tokens of layer {layer}")
        y = rows
        if len(rows):
            weights, ids = route(rows)
            # Groups of one length have no padding, and nothing is then brought to the device, as a capture asks.
            if min(tokens) < longest:
                place = torch.arange(longest, device=x.device)
                is_token = place < torch.tensor(tokens, device=x.device)[:, None]
                ids = ids.masked_fill(~is_token.reshape(-1, 1), -1)
            if self.layout.ep > 1:
                is_own = (ids >= self._experts.start) & (ids < self._experts.stop)
                ids = torch.where(is_own, ids - self._experts.start, -1)
            y = compute(rows, weights, ids)
        if self.layout.dp > 1:
            y = self.across.reduce_scatter(y, label=f"experts of layer {layer}")[: x.shape[0]]
        if self.is_alone or self.norm_sums:
            return y
        return self.within.all_reduce(y, label=f"experts of layer {layer}")

    def _dispatched(self, x: Tensor, route: Route, compute: Compute, layer: int) -> Tensor:
        """Rows travel to the ranks of their experts, one a slot, and are summed at home in the order of the slots.

        Every expert then meets the rows that it would meet alone, in the same order, and every sum has the order that
        it has alone: the result has the bits of one rank's.
        """
        own = span(x.shape[0], parts=self.layout.tp, index=self.layout.tp_rank)
        mine = x[own.start : own.stop]
        if len(mine):
            weights, ids = route(mine)
        else:
            wide = torch.promote_types(x.dtype, torch.float32)
            weights, ids = x.new_empty(0, self._top_k, dtype=wide), x.new_empty(0, self._top_k, dtype=torch.int32)
        slots, size = ids.flatten().long(), self._experts.size
        order = torch.argsort(torch.where(slots >= 0, slots // size, self.layout.world), stable=True)
        order = order[: int((slots >= 0).sum())]
        counts = torch.bincount(slots[order] // size, minlength=self.layout.world).tolist()
        sent = mine[order // ids.shape[1]].split(counts)
        rows = self.world.all_to_all(sent, label=f"tokens to experts of layer {layer}")
        local = (slots[order] % size).to(ids.dtype)[:, None].split(counts)
        local_ids = torch.cat(self.world.all_to_all(local, label=f"ids to experts of layer {layer}"))
        arrived = torch.cat(rows)
        ones = weights.new_ones(len(arrived), 1)
        computed = compute(arrived, ones, local_ids) if len(arrived) else arrived
        back = self.world.all_to_all(computed.split([len(part) for part in rows]), label=f"experts of layer {layer}")
        weighted = torch.cat(back) * weights.flatten()[order, None]
        terms = weighted.new_zeros(len(slots), x.shape[1]).index_copy(0, order, weighted)
        y = functools.reduce(torch.add, terms.reshape(*ids.shape, x.shape[1]).unbind(1)).to(x.dtype)
        if self.is_alone:
            return y
        return self.within.all_gather(_padded(y, own.size), label=f"summed experts of layer {layer}")[: x.shape[0]]


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])
