"""Continue prompts by the likeliest token with no look at any value: a step hands its tokens to the next on the device.

On a GPU a step is one CUDA graph: token, positions, slots and lengths move on inside it, so a token costs one launch.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minimax_m2.harness.cuda_graph import captured, on_a_stream
from minimax_m2.harness.graph_decode import StaticStep
from minimax_m2.reference.generation import likeliest
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.paging import PagedCache

# Tokens of one pass of a prefill: what experts make of them is a few gigabytes at MiniMax-M2's width.
CHUNK = 8192


class Continuation:
    """Sequences of a cache, in the order of their numbers, that go on by ``most`` tokens at most.

    The cache has the pages for them. ``tokens [B, most]`` holds what was chosen so far; of equal logits the lower id
    wins, as in ``generation.greedy``, and nothing ends a sequence.
    """

    def __init__(self, model: MiniMaxM2, cache: PagedCache, *, sequences: int, most: int, is_captured: bool) -> None:
        self._starts = {sequence: cache.length(sequence) for sequence in range(sequences)}
        reserved = cache.append(dict.fromkeys(self._starts, most))
        self.static = StaticStep(model, cache, sequences=sequences, max_seq_len=reserved.max_seq_len)
        self.tokens = torch.zeros(sequences, most, dtype=torch.int64, device=model.device)
        # Where the next token goes, as a tensor: a graph reads it anew at each replay.
        self._place = torch.zeros(sequences, 1, dtype=torch.int64, device=model.device)
        self._lengths = torch.tensor(list(self._starts.values()), device=model.device)
        self._table = reserved.block_table
        self._graph = None
        if is_captured:
            on_a_stream(self._advance)
            self._graph, _ = captured(self._advance)

    def start(self, first: Tensor) -> None:
        """Begin with the tokens ``first [B]`` behind what the cache holds; a second start repeats the first."""
        held = self.static.batch
        self.static.ids.copy_(first)
        self._place.zero_()
        held.positions.copy_(self._lengths)
        held.seq_lens.copy_(self._lengths + 1)
        held.block_table.copy_(self._table)
        self._find_slots()

    def step(self) -> None:
        """Choose one token more of each sequence."""
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()

    def timed(self, tokens: int) -> list[float]:
        """Seconds of each of so many steps: on the device where they are graphs, which follow each other unasked."""
        if self._graph is None:
            marks = [time.perf_counter()]
            for _ in range(tokens):
                self.step()
                marks.append(time.perf_counter())
            return [after - before for before, after in pairwise(marks)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(tokens + 1)]
        events[0].record()
        for event in events[1:]:
            self.step()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e-3 for before, after in pairwise(events)]

    def _advance(self) -> None:
        held = self.static.batch
        self.static.run()
        self.static.ids.copy_(likeliest(self.static.logits))
        self.tokens.scatter_(1, self._place, self.static.ids[:, None])
        self._place += 1
        held.positions.add_(1)
        held.seq_lens.add_(1)
        self._find_slots()

    def _find_slots(self) -> None:
        held, page = self.static.batch, self.static.cache.page_size
        # The step behind the last token has no slot of its own and is never run.
        at = (held.positions // page).clamp(max=self._table.shape[1] - 1)
        held.slots.copy_(self._table.gather(1, at[:, None])[:, 0].long() * page + held.positions % page)


def behind_drawn_keys(
    model: MiniMaxM2, *, sequences: int, held: int, most: int, is_captured: bool
) -> Continuation:  # fmt: skip
    """Sequences that hold ``held`` tokens each; keys and values are normally distributed, the same in every run."""
    cache = model.new_cache(tokens=[held + most] * sequences)
    cache.append(dict.fromkeys(range(sequences), held))
    generator = torch.Generator(device=cache.k[0].device).manual_seed(0)
    for part in (*cache.k, *cache.v):
        part.normal_(generator=generator)
    return Continuation(model, cache, sequences=sequences, most=most, is_captured=is_captured)


def prefilled(model: MiniMaxM2, prompts: Mapping[int, Tensor], cache: PagedCache, *, chunk: int = CHUNK) -> Tensor:
    """Append prompts, ids ``[n]``, in passes of at most ``chunk`` tokens; returns each one's last logits ``[B, V]``."""
    last: dict[int, Tensor] = {}
    left = {sequence: ids for sequence, ids in prompts.items() if len(ids)}
    while left:
        taken, room = {}, chunk
        for sequence, ids in left.items():
            if room == 0:
                break
            taken[sequence] = ids[:room]
            room -= len(taken[sequence])
        last |= dict(zip(taken, model.prefill(taken, cache), strict=True))
        left = {s: rest for s, ids in left.items() if len(rest := ids[len(taken.get(s, ids[:0])) :])}
    return torch.stack([last[sequence] for sequence in prompts])


def continued(
    model: MiniMaxM2,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = (),
    page_size: int = 16,
) -> list[list[int]]:
    """Do what ``model.generate`` does, a graph a token on a GPU; every sequence runs as long as the longest.

    Raises ValueError for an empty prompt, which has no last token to continue.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty; give at least one token to continue")
    if max_new_tokens < 1 or not prompts:
        return [[] for _ in prompts]
    cache = model.new_cache(tokens=[len(prompt) + max_new_tokens for prompt in prompts], page_size=page_size)
    first = likeliest(prefilled(model, dict(enumerate(prompts)), cache))
    found = first[:, None]
    if max_new_tokens > 1:
        more = Continuation(
            model, cache, sequences=len(prompts), most=max_new_tokens - 1, is_captured=model.device.type == "cuda"
        )
        more.start(first)
        for _ in range(max_new_tokens - 1):
            more.step()
        found = torch.cat([found, more.tokens], 1)
    return [_until_its_end(row, eos_token_ids) for row in found.tolist()]


def _until_its_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]
