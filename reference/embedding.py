"""Rows of the embedding table, or of one rank's shard of it."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract


def embedding(ids: Tensor, weight: Tensor, *, vocab_start: int = 0, contract: Contract = EXACT) -> Tensor:
    """Pick ``weight[id - vocab_start]``; ids outside the shard give rows of zeros, to be summed over ranks.

    ids      [T] int32 or int64
    weight   [V of the shard, H], the rows vocab_start .. vocab_start + V - 1
    returns  [T, H], dtype of weight

    Contract: no fields; the rows are copies.
    """
    local = ids.long() - vocab_start
    outside = (local < 0) | (local >= weight.shape[0])
    # Masked before the look-up: an id of another shard is no address here.
    return weight[local.masked_fill(outside, 0)].masked_fill(outside[:, None], 0.0)
