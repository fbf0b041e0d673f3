"""Greedy continuation over a paged cache: prompts of any lengths prefill together, then decode together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from minimax_m2.reference.paging import PagedCache


class Generator(Protocol):
    """What generation needs of a model."""

    def new_cache(self, *, tokens: Sequence[int], page_size: int = 16) -> PagedCache: ...

    def prefill(self, chunks: Mapping[int, Tensor], cache: PagedCache) -> Tensor: ...


def likeliest(logits: Tensor) -> Tensor:
    """The id of the largest of ``logits [B, V]``, the lowest of equal ones."""
    # argmax promises no order among equals, the comparison does.
    return (logits == logits.amax(-1, keepdim=True)).to(torch.int8).argmax(-1)


def greedy(
    model: Generator,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = (),
    page_size: int = 16,
) -> list[list[int]]:
    """Return each prompt's likeliest continuation; of equal logits the lower id wins.

    A sequence ends with its first token of ``eos_token_ids``, which is returned too, or at ``max_new_tokens``.
    Raises ValueError for an empty prompt, which has no last token to continue.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty; give at least one token to continue")
    continuations: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens < 1 or not prompts:
        return continuations
    cache = model.new_cache(tokens=[len(prompt) + max_new_tokens for prompt in prompts], page_size=page_size)
    chunks = dict(enumerate(prompts))
    while chunks:
        tokens = likeliest(model.prefill(chunks, cache))
        for sequence, token in zip(chunks, tokens.tolist(), strict=True):
            continuations[sequence].append(token)
        open_ends = {
            sequence: token[None]
            for sequence, token in zip(chunks, tokens, strict=True)
            if int(token) not in eos_token_ids and len(continuations[sequence]) < max_new_tokens
        }
        for sequence in chunks.keys() - open_ends.keys():
            cache.release(sequence)
        chunks = open_ends
    return continuations
