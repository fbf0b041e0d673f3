"""The reference's way through a model, layer by layer: every step of a prefill and of the decodes after it.

A layer meets the prefill and every decode before the next layer is asked for, so that weights may be made as they are
needed and dropped: MiniMax-M2's width takes the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.drift.answers import Answer, exact_answers
from minimax_m2.harness.drift.calls import EMBEDDING, Call, kept, roles, tapped
from minimax_m2.harness.drift.candidate import Candidate, Place
from minimax_m2.harness.drift.lockstep import Cell, Judge
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.exchange import Exchange
from minimax_m2.reference.layer import DecoderLayer, Pass, Tap
from minimax_m2.reference.paging import Batch, PagedCache
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.table import OpTable
from minimax_m2.reference.weights import LayerWeights, ModelWeights

Tell = Callable[[str, float], None]
PAGE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What drift is looked for in: weights in the dtype that a model is served in, and the tokens ``[T]`` it reads.

    weights     its ``layers`` may be made as they are asked for
    decoded     how many of the last tokens come one at a time, after the prefill of the others
    rope_dtype  of the table of cosines and sines
    """

    name: str
    config: MiniMaxM2Config
    weights: ModelWeights
    ids: Tensor
    decoded: int = 1
    rope_dtype: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.norm.dtype


@dataclass(slots=True)
class Stream:
    """What one step of the engine carries through the layers: its tokens, and the two halves of the residual stream."""

    phase: str
    batch: Batch
    hidden: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halfway:
    """Where a pass stands between two layers: the next one, and hidden and residual ``[T, H]`` of each stream."""

    layer: int
    streams: list[tuple[Tensor, Tensor]]


Keep = Callable[[Halfway], None]


def passed(
    subject: Subject, watch: Callable[[Call], Any], *, offered: Collection[str], tap: Tap | None = None,
    tell: Tell = lambda text, share: None, begin: Halfway | None = None, keep: Keep = lambda where: None,
) -> Tensor:  # fmt: skip
    """Send the tokens through the model on what ``watch`` answers to each call; logits ``[T, V]``.

    A coarse step of which only parts are ``offered`` is made of them, and the parts are the calls. ``keep`` is shown
    where the pass stands behind each layer; from there another may ``begin``.
    """
    config, weights = subject.config, subject.weights
    taps = _Taps(watch, frozenset(offered))
    cache = PagedCache.empty(config, num_pages=-(-len(subject.ids) // PAGE), page_size=PAGE, dtype=subject.dtype)
    embedding, streams = taps.table(EMBEDDING, {}), []
    for place, (taps.phase, ids) in enumerate(_pieces(subject)):
        batch = cache.append({0: len(ids)})
        carried = (embedding.embedding(ids, weights.embed_tokens), None) if begin is None else begin.streams[place]
        streams.append(Stream(taps.phase, batch, *carried))
    shared = partial(Pass, config=config, cos_sin=table_of(subject), exchange=Exchange.alone(config), tap=tap)
    for index in range(begin.layer if begin else 0, config.num_hidden_layers):
        tell(f"layer {index + 1} of {config.num_hidden_layers}", index / config.num_hidden_layers)
        _through(weights.layers[index], index, streams, taps, shared, cache)
        # Behind a layer there is always a residual.
        keep(Halfway(layer=index + 1, streams=[(s.hidden, s.residual) for s in streams if s.residual is not None]))
    last, logits = taps.table(config.num_hidden_layers, roles(norm=weights.norm)), []
    for stream in streams:
        taps.phase = stream.phase
        x, _ = last.add_rms_norm(stream.hidden, stream.residual, weights.norm, eps=config.rms_norm_eps)
        logits.append(last.lm_head(x, weights.lm_head, rows=None, vocab_size=len(weights.lm_head)))
    return torch.cat(logits)


def _through(
    layer: LayerWeights, index: int, streams: list[Stream], taps: _Taps, shared: Callable[..., Pass], cache: PagedCache
) -> None:
    """Send every stream through one layer, of which nothing is kept."""
    steps = DecoderLayer.pack(layer, index=index, ops=taps.table(index, roles(layer)))
    for stream in streams:
        taps.phase = stream.phase
        passing = shared(batch=stream.batch, tokens=[len(stream.hidden)])
        stream.hidden, stream.residual, _ = steps(
            stream.hidden, stream.residual, cache.k[index], cache.v[index], passing
        )


@dataclass(slots=True)
class _Taps:
    """Tables whose calls know their phase."""

    watch: Callable[[Call], Any]
    offered: frozenset[str]
    phase: str = "prefill"

    def table(self, layer: int, named: dict[int, str]) -> OpTable:
        """A layer's table."""
        return tapped(
            lambda call: self.watch(replace(call, phase=self.phase)), layer=layer, roles=named, offered=self.offered
        )


def walk(
    subject: Subject, visit: Callable[[Call], None], *, offered: Collection[str], reference: Answer = exact_answers,
    tell: Tell = lambda text, share: None, begin: Halfway | None = None, keep: Keep = lambda where: None,
) -> Tensor:  # fmt: skip
    """Go the reference's way and show every call to ``visit``; logits ``[T, V]``. The rest as in ``passed``."""

    def watch(call: Call) -> Any:
        visit(kept(call))
        return reference(call)

    with torch.inference_mode():
        return passed(subject, watch, offered=offered, tell=tell, begin=begin, keep=keep)


def _pieces(subject: Subject) -> list[tuple[str, Tensor]]:
    """The prompt, then each decoded token."""
    prompt = len(subject.ids) - subject.decoded
    if prompt < 1:
        raise ValueError(f"{len(subject.ids)} tokens, {subject.decoded} of them decoded: no token is left to prefill")
    return [("prefill", subject.ids[:prompt]), *(("decode", token[None]) for token in subject.ids[prompt:])]


def table_of(subject: Subject) -> Tensor:
    """Cosines and sines of the subject's positions, ``[T, R]``."""
    config = subject.config
    table = cos_sin_table(num_positions=len(subject.ids), rotary_dim=config.rotary_dim, theta=config.rope_theta)
    return table.to(subject.rope_dtype)


class Trajectory:
    """The recorded calls of one walk: as many candidates as one likes can be held against them."""

    def __init__(
        self, subject: Subject, *, offered: Collection[str], reference: Answer = exact_answers,
        tell: Tell = lambda text, share: None,
    ) -> None:  # fmt: skip
        self.calls: list[Call] = []
        walk(subject, self.calls.append, offered=offered, reference=reference, tell=tell)
        self._judge = Judge()

    def cells(
        self, candidate: Candidate, calls: Collection[Call] | None = None, *, tell: Tell = lambda text, share: None
    ) -> Iterator[Cell]:
        """Judge a candidate on every call, or on some."""
        chosen = self.calls if calls is None else calls
        with torch.inference_mode():
            for done, call in enumerate(chosen):
                tell(f"layer {call.layer}, {call.step}, {call.phase}", done / len(chosen))
                yield self._judge.cell(call, candidate)

    def at(self, place: Place) -> list[Call]:
        """The calls of one place."""
        return [call for call in self.calls if call.place == place]

    def explained(self, cell: Cell, candidate: Candidate) -> Cell:
        """A wrong cell with what its output equals, where that is found."""
        (call,) = [call for call in self.at(cell.place) if call.phase == cell.phase][:1]
        with torch.inference_mode():
            return replace(cell, explanation=self._judge.explanation(call, candidate))
