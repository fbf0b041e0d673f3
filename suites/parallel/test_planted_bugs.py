"""Bugs that parallel deployments had, planted one at a time, are caught; what carries them is right without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.parallel import Split, difference
from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.qk_norm_rope import qk_sum_squares
from minimax_m2.reference.qk_norm_rope_cache import qk_norm_rope_cache
from minimax_m2.reference.sharding import Layout, cut, head_cut
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import ModelWeights

# 12 query and 4 key/value heads: 3 ranks hold 2, 2 and 0 of the latter, 8 ranks hold replicas.
UNEVEN = Split(config="groups of 3", tp=3, tokens=((2, 5),))
REPLICATED = Split(config="groups of 3", tp=8, tokens=((2, 5),))
EMPTY_RANK = Split(config="groups of 3", tp=1, dp=3, ep=3, tokens=((2, 5), (1, 0), (1, 2)))


def padded_divisor(layout: Layout) -> dict[str, Any]:
    def op(*given: Any, q_width: int, k_width: int, num_heads: int, num_kv_heads: int, **sizes: Any) -> Tensor:
        local = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        padded = {"q_width": num_heads * sizes["head_dim"], "k_width": num_kv_heads * sizes["head_dim"]}
        sizes |= local | {name: width * layout.tp for name, width in padded.items()}
        return qk_norm_rope_cache(*given, **sizes)

    return {"qk_norm_rope_cache": op}


def mean_of_means(layout: Layout) -> dict[str, Any]:
    """Each rank's mean over its own heads, all weighted alike: right for equal shares only."""

    def op(qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, counted_kv_heads: int) -> Tensor:
        sums = qk_sum_squares(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        true = max(counted_kv_heads, 1) * head_dim
        return sums / torch.tensor([3 * true, true]) * torch.tensor([192, 64]) / layout.tp

    return {"qk_sum_squares": op}


def kv_shard_by_rank(weights: ModelWeights, config: MiniMaxM2Config, layout: Layout) -> ModelWeights:
    own = head_cut([layout.rank % config.num_key_value_heads], head_dim=config.head_dim)
    share = shard(weights, config, layout)
    layers = [
        dataclasses.replace(mine, k_norm=cut(whole.k_norm, own, dim=0))
        for mine, whole in zip(share.layers, weights.layers, strict=True)
    ]
    return dataclasses.replace(share, layers=layers)


class Missing(Relay):
    """Leaves out the sum after the attention."""

    def call(self, kind: str, payload: Any, label: str) -> Any:
        return payload if label.startswith("o_proj") else super().call(kind, payload, label)


class Doubled(Relay):
    """Sums the attention twice."""

    def call(self, kind: str, payload: Any, label: str) -> Any:
        once = super().call(kind, payload, label)
        return super().call(kind, once, label) if label.startswith("o_proj") else once


class EarlyReturn(MiniMaxM2):
    """Leaves before the first collective where there are no tokens."""

    def step(self, ids: Tensor, *given: Any, **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        if not len(ids):
            return torch.empty(0, self.config.vocab_size, dtype=self.dtype), {}
        return super().step(ids, *given, **more)


class CapturedBeforeTheSum(MiniMaxM2):
    """Captures what this rank's experts add before the other ranks' has come in."""

    def step(self, *given: Any, **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        logits, states = super().step(*given, **more)
        return logits, {key: state / self.layout.tp for key, state in states.items()}


class CapturedBeforeTheGather(MiniMaxM2):
    """Captures the slice of the tokens that this rank of a group sent to the experts."""

    def step(self, *given: Any, **more: Any) -> tuple[Tensor, dict[int, Tensor]]:
        logits, states = super().step(*given, **more)
        return logits, {key: state.chunk(self.layout.tp)[self.layout.tp_rank] for key, state in states.items()}


def told(split: Split, **parts: Any) -> str:
    """What a split's judge says, an exception included."""
    try:
        return difference(split, **parts)
    except (ValueError, RuntimeError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


SCATTERED = dataclasses.replace(UNEVEN, ep=3, dispatch="all_to_all", tokens=((2, 3),))
BUGS: dict[str, tuple[Split, dict[str, Any], str]] = {
    "padded divisor": (UNEVEN, {"ops": padded_divisor}, "logits differs"),
    "mean of the shares' means": (UNEVEN, {"ops": mean_of_means}, "logits differs"),
    "key/value share by rank": (REPLICATED, {"cut": kv_shard_by_rank}, "logits differs"),
    "early return before the sum": (
        EMPTY_RANK,
        {"build": EarlyReturn, "timeout_s": 0.5},
        "does it skip the collective",
    ),
    "captured before the sum": (UNEVEN, {"build": CapturedBeforeTheSum}, "state 0 differs"),
    "captured before the gather": (SCATTERED, {"build": CapturedBeforeTheGather}, "invalid for input of size"),
    "missing sum": (UNEVEN, {"relay": Missing}, "logits differs"),
    "double sum": (UNEVEN, {"relay": Doubled}, "logits differs"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    split, parts, evidence = BUGS[bug]
    assert evidence in told(split, **parts)


@pytest.mark.parametrize("split", [UNEVEN, REPLICATED, EMPTY_RANK, SCATTERED], ids=str)
def test_without_its_bug_each_split_is_right(split: Split) -> None:
    assert told(split, relay=Relay) == ""


def test_means_of_equal_shares_are_right() -> None:
    even = dataclasses.replace(UNEVEN, tp=2)
    assert told(even, ops=mean_of_means) == ""
    assert told(even, ops=padded_divisor) == ""


Loud = Callable[[Communicator], Relay]


@pytest.mark.parametrize("relay", [Missing, Doubled])
def test_a_sum_of_one_rank_may_be_left_out_or_repeated(relay: Loud) -> None:
    assert told(dataclasses.replace(UNEVEN, tp=1), relay=partial(relay)) == ""
