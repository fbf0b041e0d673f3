"""Whole models split over simulated ranks, drawn at random and held against one rank in float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import ModelWeights

# Head counts that few numbers of ranks divide, partial rotation, widths of several shares of 32; and one that is cheap
# enough for 64 ranks.
CONFIGS = {
    "groups of 3": MiniMaxM2Config(
        vocab_size=31, hidden_size=40, intermediate_size=96, num_hidden_layers=3, num_attention_heads=12,
        num_key_value_heads=4, head_dim=16, rotary_dim=6, num_local_experts=5, num_experts_per_tok=2,
    ),
    "heads alone": MiniMaxM2Config(
        vocab_size=29, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, head_dim=8, rotary_dim=8, num_local_experts=8, num_experts_per_tok=3,
    ),
    "small": MiniMaxM2Config(
        vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, rotary_dim=4, num_local_experts=4, num_experts_per_tok=2,
    ),
}  # fmt: skip


class Outcome(NamedTuple):
    """What one rank has after a prefill and a decode: logits of both, and the states of EAGLE3."""

    logits: Tensor
    states: dict[int, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A drawn model: sizes, layout, and how many sequences of how many tokens each attention group brings."""

    config: str
    tp: int
    dp: int = 1
    ep: int = 1
    widths: str = "reblock"
    dispatch: str = "gather"
    tokens: tuple[tuple[int, int], ...] = ((1, 3),)
    seed: int = 0

    def layout(self, rank: int) -> Layout:
        """A rank's place."""
        return Layout(
            tp=self.tp, dp=self.dp, ep=self.ep, rank=rank, widths=self.widths, dispatch=self.dispatch, vocab_multiple=4
        )

    def ids(self, group: int) -> Tensor:
        """The tokens of an attention group, ``[B, T]``."""
        generator = torch.Generator().manual_seed(self.seed * 64 + group)
        return torch.randint(0, CONFIGS[self.config].vocab_size, self.tokens[group], generator=generator)


Build = Callable[..., MiniMaxM2]
Cut = Callable[[ModelWeights, MiniMaxM2Config, Layout], ModelWeights]


def drawn(seed: int, *, tp: tuple[int, ...]) -> Split:
    """Draw a split whose ``tp`` is one of those; groups may bring no token at all."""
    chance = random.Random(seed)
    size = chance.choice(tp)
    name = "small" if size > 8 else chance.choice(list(CONFIGS))
    dp = chance.choice((1, 1, 2, 3, 4)) if size <= 4 else 1
    world = size * dp
    whole = world <= CONFIGS[name].num_local_experts
    ep = chance.choice([n for n in range(1, world + 1) if world % n == 0])
    dispatch = chance.choice(("gather", "all_to_all")) if whole else "gather"
    if dispatch == "all_to_all":
        ep = world
    return Split(
        config=name, tp=size, dp=dp, ep=ep, dispatch=dispatch,
        widths="ep" if ep == world and chance.random() < 0.5 else chance.choice(("reblock", "pad")),
        tokens=tuple((chance.randint(1, 2), chance.choice((0, 1, 2, 5))) for _ in range(dp)),
        seed=seed,
    )  # fmt: skip


def outcomes(split: Split, *, timeout_s: float = 60.0, **parts: Any) -> list[Outcome]:
    """Run the model on ``tp * dp`` simulated ranks; ``parts`` as in ``rank_outcome``."""
    return Threads(split.tp * split.dp, timeout_s=timeout_s).run(lambda rank: rank_outcome(split, rank, **parts))


def rank_outcome(
    split: Split, communicator: Communicator, *, build: Build = MiniMaxM2, cut: Cut = shard,
    relay: Callable[[Communicator], Communicator] | None = None, ops: Callable[[Layout], object] = lambda layout: None,
    device: str = "cpu",
) -> Outcome:  # fmt: skip
    """Run one rank on ``device``; what else is given takes the place of a right part."""
    config, layout = CONFIGS[split.config], split.layout(communicator.rank)
    share = _on(cut(_weights(split.config), config, layout), device)
    voice = relay(communicator) if relay else communicator
    model = build(config, share, communicator=voice, layout=layout, ops=ops(layout))
    logits, states = _outcome(model, split.ids(layout.dp_rank).to(device))
    return Outcome(logits.cpu(), {key: state.cpu() for key, state in states.items()})


def _on(weights: ModelWeights, device: str) -> ModelWeights:
    def moved(record: Any) -> dict[str, Any]:
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        return {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}

    layers = [replace(layer, **moved(layer)) for layer in weights.layers]
    return replace(weights, **moved(weights), layers=layers)


def difference(split: Split, **parts: Any) -> str:
    """Say how the ranks' outcomes differ from those of one rank, or nothing; ``parts`` as in ``outcomes``."""
    told = (difference_of(split, rank, found) for rank, found in enumerate(outcomes(split, **parts)))
    return next((text for text in told if text), "")


def difference_of(split: Split, rank: int, actual: Outcome) -> str:
    """Say how a rank's outcome differs from what one rank has of its group's tokens, or nothing."""
    told = _difference(actual, alone(split, split.layout(rank).dp_rank), CONFIGS[split.config])
    return f"rank {rank} of {split}: {told}" if told else ""


def alone(split: Split, group: int) -> Outcome:
    """What one rank has of an attention group's tokens."""
    return _alone(split.config, split.tokens[group], split.seed * 64 + group)


def _difference(actual: Outcome, expected: Outcome, config: MiniMaxM2Config) -> str:
    if list(actual.states) != list(expected.states):
        return f"states of layers {list(actual.states)}, expected {list(expected.states)}"
    pairs: Mapping[str, tuple[Tensor, Tensor]] = {
        "logits": (actual.logits, expected.logits),
        **{f"state {key}": (actual.states[key], state) for key, state in expected.states.items()},
    }
    for name, (x, y) in pairs.items():
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{name} is {x.dtype} {list(x.shape)}, expected {y.dtype} {list(y.shape)}"
        error = float((x - y).abs().max() / y.abs().max()) if y.numel() else 0.0
        if not error <= another_order(config):
            return f"{name} differs by {error:.1e} of the largest, {another_order(config):.1e} is allowed"
    return ""


def another_order(config: MiniMaxM2Config, *, unit: float = 2.0**-53) -> float:
    """How far sums over ranks, which run in another order, move what a model computes, of its largest.

    A layer has six sums, of at most as many terms as its widest dimension: sqrt(sums * terms) roundings of ``unit``
    (2^-53 in float64, 2^-24 in float32) on either side; and a factor of ten for what norms and the softmax stretch.
    """
    terms = max(config.q_width, config.intermediate_size, config.hidden_size)
    return 10 * 2 * (6 * config.num_hidden_layers * terms) ** 0.5 * unit


def _outcome(model: MiniMaxM2, ids: Tensor) -> Outcome:
    """Prefill all tokens with every state captured, then decode one token of each sequence that has any."""
    layers = model.config.num_hidden_layers
    logits, states = model(ids, capture=range(layers + 1))
    cache = model.new_cache(tokens=[ids.shape[1] + 1] * ids.shape[0], page_size=4)
    rows = {sequence: row for sequence, row in enumerate(ids) if len(row)}
    model.prefill(rows, cache)
    # Groups without a token take part in the step all the same.
    last = model.prefill({sequence: row[-1:] for sequence, row in rows.items()}, cache)
    return Outcome(torch.cat([logits.flatten(0, 1), last]), dict(states))


@lru_cache(maxsize=8)
def _weights(config: str) -> ModelWeights:
    return random_weights(CONFIGS[config], seed=9)


@lru_cache(maxsize=256)
def _alone(config: str, tokens: tuple[int, int], seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CONFIGS[config].vocab_size, tokens, generator=generator)
    return _outcome(MiniMaxM2(CONFIGS[config], _weights(config)), ids)
