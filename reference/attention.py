"""Causal attention with grouped queries over a paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.composites import softmax, unnormalised_softmax
from minimax_m2.reference.contract import EXACT, Contract, rounded


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, *,
    scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None, contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Attend from each sequence's new tokens to its cached keys, the last query to all of them.

        y[i] = softmax(scale * q[i] @ k[: S - n + i + 1]^T) @ v,  i = 0..n-1 queries of a sequence of length S

    q                 [T, Hq, D]; head h reads key/value head h // (Hq/Hk)
    k_cache, v_cache  [pages, page, Hk, D]; read times k_scale, v_scale (None: 1)
    block_table       [B, max pages]; entries beyond a sequence's length are never read
    seq_lens          [B], S, the new tokens included
    query_start       [B + 1], rising; rows of q outside it are padding
    returns           [T, Hq, D], dtype of q; rows without keys are 0

    Contract:
        scores         scale * q @ k: float32 or None in every flash kernel; model dtype: transformers, eager.
        probabilities  the weights before the second product. Model dtype: flash kernels (P is cast for PV), which round
                       exp(score - maximum) and divide by its unrounded sum at the end. None: float32 P.
        normalised     True: softmax's quotient is what is rounded (transformers, eager); None: flash.
        out            the result.

    Raises ValueError if a sequence is longer than ``max_seq_len`` or has more queries than ``max_query_len``.
    """
    heads = q.shape[1]
    parts = [torch.zeros_like(q[: int(query_start[0])])]
    for table, length, start, end in zip(
        block_table, seq_lens.tolist(), query_start[:-1].tolist(), query_start[1:].tolist(), strict=True
    ):
        if end - start > max_query_len or length > max_seq_len:
            raise ValueError(
                f"{end - start} queries, {length} keys exceed max_query_len={max_query_len}, max_seq_len={max_seq_len}"
            )
        if length == 0 or start == end:
            parts.append(torch.zeros_like(q[start:end]))
            continue
        k, v = (paged(c, table, length, s).to(q.dtype) for c, s in ((k_cache, k_scale), (v_cache, v_scale)))
        # Query heads that share a key/value head stand beside each other: [Hk, heads of the group * n, D].
        grouped = q[start:end].transpose(0, 1).reshape(k.shape[0], -1, q.shape[-1])
        scores = rounded(grouped @ k.mT * scale, contract.scores)
        last_key = torch.arange(length - (end - start), length, device=q.device).repeat(heads // k.shape[0])
        hidden = torch.arange(length, device=q.device) > last_key[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
        if contract.probabilities is None or contract.normalised:
            y = rounded(softmax(scores), contract.probabilities) @ v
        else:
            p = unnormalised_softmax(scores)
            total = p.sum(-1, keepdim=True).masked_fill(hidden.all(-1, keepdim=True), 1.0)
            y = rounded(p, contract.probabilities) @ v / total
        parts.append(y.reshape(heads, end - start, q.shape[-1]).transpose(0, 1))
    parts.append(torch.zeros_like(q[int(query_start[-1]) :]))
    return rounded(torch.cat(parts, 0), contract.out)


def paged(cache: Tensor, table: Tensor, length: int, scale: Tensor | float | None) -> Tensor:
    """Gather one sequence's ``[Hk, S, D]`` from ``cache [pages, page, Hk, D]``."""
    page = cache.shape[1]
    pages = table[: -(-length // page)].long()
    x = cache[pages].flatten(0, 1)[:length].transpose(0, 1)
    return x if scale is None else x * scale
