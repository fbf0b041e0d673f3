"""Every op of our CPU kernels gives the same bits with one, two and three threads and in any batch, on every ISA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import repeat
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.relation import Exactness, Standing, relate, relations_of
from minimax_m2.harness.sampling import sampled
from minimax_m2.kernels.cpu import isa

OURS = ours()
OPS = [op for op in all_ops() if OURS.offers(op)]
# Other tokens, sequences or rows beside one: fewer, more, in another order, at another time.
OTHERS = (
    *("a token alone", "tokens permuted", "tokens repeated", "a query at a time", "prompts in two parts"),
    *("a sequence alone", "a prompt alone", "a row of logits alone", "a stored token alone"),
)
# Widening a weight knows no tokens, and counting them is what the other is for.
WITHOUT_BATCH = ("block_dequant", "moe_align")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_threads(provider: Provider, op: str, counts: tuple[int, ...]) -> Provider:
    """The provider with ``op`` called on the next of ``counts`` threads each time."""
    function, turns = provider.functions(op), cycle(counts)

    def call(*arguments: Any, **keywords: Any) -> Any:
        torch.set_num_threads(next(turns))
        assert function is not None, f"{provider.name} offers {op}"
        return function(*arguments, **keywords)

    return dataclasses.replace(provider, functions=lambda name: call if name == op else provider.functions(name))


def longest(op: str) -> list[Case]:
    """The three cases with the most tokens of those that the harness samples: the likeliest to be shared out."""

    def tokens(case: Case) -> int:
        return case.number("T") if "T" in case else case.number("B") * case.number("S") if "S" in case else 0

    return sorted(sampled(find_op(op), 40), key=tokens)[-3:]


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("op", OPS)
def test_the_number_of_threads_changes_no_bit(op: str, name: str) -> None:
    for case in longest(op):
        assert repeat(case, on_threads(OURS, op, (1, 2)), name), f"one and two threads differ: {case.json}"
        assert repeat(case, on_threads(OURS, op, (1, 3)), name), f"one and three threads differ: {case.json}"


@pytest.mark.parametrize("op", OPS)
def test_nor_at_the_size_of_a_prefill(op: str) -> None:
    case = find_op(op).shape("prefill")
    assert repeat(case, on_threads(OURS, op, (1, 2)), isa.current())
    assert repeat(case, on_threads(OURS, op, (1, 3)), isa.current())


def in_another_batch(op: str, provider: Provider, name: str) -> set[Standing]:
    """What the relations to other batches show on the cases with the most tokens."""
    chosen = [relation for relation in relations_of(op) if relation.name in OTHERS]
    pairs = [(relation, case) for relation in chosen for case in longest(op)]
    return {relate(r, find_op(op), case, provider, name, Exactness.BITS).standing for r, case in pairs}


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("op", [op for op in OPS if op not in WITHOUT_BATCH])
def test_the_rest_of_the_batch_changes_no_bit(op: str, name: str) -> None:
    shown = in_another_batch(op, OURS, name)
    assert Standing.HOLDS in shown
    assert Standing.BROKEN not in shown


@pytest.mark.parametrize("op", ["linear", "attention", "gdn_update", "lm_head", "qk_norm_rope_cache"])
def test_an_op_that_tells_how_many_rows_there_are_is_noticed(op: str) -> None:
    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            out = function(*arguments, **keywords)
            out.view(len(out), -1)[:1, 0] = len(out) % 64
            return out

        return call

    spoilt = dataclasses.replace(OURS, functions=lambda name: counted(OURS.functions(name) or abs))
    assert Standing.BROKEN in in_another_batch(op, spoilt, isa.current())


def test_an_op_that_sums_by_threads_is_noticed() -> None:
    def by_threads(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **keywords: function(*arguments, **keywords) * torch.get_num_threads()

    plain = dataclasses.replace(OURS, functions=lambda name: by_threads(OURS.functions(name) or abs))
    assert not repeat(find_op("linear").shape("decode"), on_threads(plain, "linear", (1, 2)), isa.current())
