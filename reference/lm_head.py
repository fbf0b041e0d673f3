"""Logits over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded


def lm_head(
    x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int, contract: Contract = EXACT
) -> Tensor:
    """Multiply the chosen rows by the head's weight: ``logits = x[rows] @ weight[:vocab_size]^T``.

    x        [T, H]
    weight   [V or more, H]; rows from vocab_size on pad the shards and give no column
    rows     [N] int32 or int64, e.g. each sequence's last token; None: all
    returns  [N, vocab_size] float32 (float64 for a float64 x)

    Contract: ``out``, the logits: model dtype in vLLM and SGLang, which cast to float32 afterwards; None: float32.

    Raises ValueError if weight has fewer than ``vocab_size`` rows.
    """
    if weight.shape[0] < vocab_size:
        raise ValueError(f"weight has {weight.shape[0]} rows, fewer than vocab_size={vocab_size}; gather all shards")
    working = torch.promote_types(x.dtype, torch.float32)
    chosen = x if rows is None else x.index_select(0, rows)
    return rounded(chosen.to(working) @ weight[:vocab_size].to(working).mT, contract.out)
