"""Tokens that are handed on without a look at any value are those that greedy generation chooses, step by step."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.continuation import Continuation, behind_drawn_keys, continued, prefilled
from minimax_m2.harness.parallel import CONFIGS
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.generation import likeliest
from minimax_m2.reference.model import MiniMaxM2

CONFIG = CONFIGS["groups of 3"]


@cache
def model() -> MiniMaxM2:
    return MiniMaxM2(CONFIG, random_weights(CONFIG, seed=3))


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(CONFIG.vocab_size, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("lengths", [(1,), (7, 3, 16)])
@pytest.mark.parametrize("most", [1, 2, 9])
def test_a_continuation_is_the_greedy_one(lengths: tuple[int, ...], most: int) -> None:
    given = prompts(*lengths)
    found = continued(model(), given, max_new_tokens=most, page_size=4)
    assert found == model().generate(given, max_new_tokens=most, page_size=4)


def test_a_continuation_ends_with_its_first_end_token() -> None:
    given = prompts(5, 8)
    ends = {continued(model(), given, max_new_tokens=9)[1][3]}
    found = continued(model(), given, max_new_tokens=9, eos_token_ids=ends)
    assert found == model().generate(given, max_new_tokens=9, eos_token_ids=ends)
    assert len(found[1]) <= 4


def test_nothing_is_continued_by_nothing() -> None:
    assert continued(model(), prompts(3), max_new_tokens=0) == [[]]
    assert continued(model(), [], max_new_tokens=4) == []
    with pytest.raises(ValueError, match="a prompt is empty"):
        continued(model(), prompts(2, 0), max_new_tokens=1)


# Passes of one token, passes that end within a prompt and at its end, and a single one.
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_a_prefill_in_passes_has_the_last_logits_of_every_prompt(chunk: int) -> None:
    given = prompts(7, 3, 12)
    cache_ = model().new_cache(tokens=[12] * 3, page_size=4)
    found = prefilled(model(), dict(enumerate(given)), cache_, chunk=chunk)
    expected = torch.stack([model()(ids)[-1] for ids in given])
    # derived: products of another number of rows may add in another order; 2^-53 a rounding, thousands of them
    assert torch.allclose(found, expected, rtol=0, atol=2.0**-40 * float(expected.abs().max()))


def test_drawn_keys_are_the_same_in_every_run() -> None:
    caches = [behind_drawn_keys(model(), sequences=2, held=5, most=3, is_captured=False).static.cache for _ in range(2)]
    assert all(map(torch.equal, caches[0].k, caches[1].k))
    assert not torch.equal(caches[0].k[0], caches[0].v[0])


def test_a_second_start_repeats_the_first() -> None:
    cache_ = model().new_cache(tokens=[12], page_size=4)
    first = likeliest(prefilled(model(), {0: prompts(6)[0]}, cache_))
    going = Continuation(model(), cache_, sequences=1, most=6, is_captured=False)
    found = []
    for _ in range(2):
        going.start(first)
        for _ in range(6):
            going.step()
        found.append(going.tokens.tolist())
    assert found[0] == found[1]


def test_of_equal_logits_the_lower_id_is_chosen() -> None:
    assert likeliest(torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, 0.0]])).tolist() == [1, 0]
