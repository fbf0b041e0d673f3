"""Ops and models split over any number of ranks are what one rank computes: two thousand drawn cases."""

from __future__ import annotations

import pytest

from minimax_m2.harness.parallel import Split, difference, drawn, outcomes
from minimax_m2.harness.parallel_ops import SPLIT_OPS, split_cases, try_split
from minimax_m2.reference.sharding import Heads, heads

# Every number of ranks to 16 and what engines deploy beyond.
SIZES = (*range(1, 17), 24, 32, 48, 64)
# Cases of each op and number of ranks; `settle` and heads in broken groups take a few away. Together with the models
# below they are more than 2,000; experts and attention are the dearest.
CASES = {"embedding": 30, "qk_sum_squares": 30, "lm_head": 20, "linear": 20, "qk_norm_rope": 12, "fp8_linear": 8,
         "experts": 6, "attention": 4}  # fmt: skip
MODELS, LARGE_MODELS, BATCH = 160, 40, 10


def test_every_shared_op_is_drawn() -> None:
    assert set(CASES) == set(SPLIT_OPS)
    drawn_cases = sum(len(split_cases(op, count, start=tp * count)) for op, count in CASES.items() for tp in SIZES)
    assert drawn_cases + MODELS + LARGE_MODELS >= 2000
    assert LARGE_MODELS <= 100


@pytest.mark.parametrize("tp", SIZES)
@pytest.mark.parametrize("op", CASES)
def test_an_op_over_ranks_keeps_the_budget_of_one(op: str, tp: int) -> None:
    cases = split_cases(op, CASES[op], start=tp * CASES[op])
    verdicts = try_split(op, tp=tp, cases=cases, turn=tp // 2)
    assert verdicts[-1].passed, verdicts[-1].explain()
    assert len(verdicts) == len(cases)


@pytest.mark.parametrize("tp, ep", [(2, 2), (4, 2), (6, 3), (8, 8), (12, 4)])
def test_experts_over_groups_of_ranks_keep_the_budget_of_one(tp: int, ep: int) -> None:
    verdicts = try_split("experts", tp=tp, ep=ep, cases=split_cases("experts", 6, start=1000 * tp))
    assert verdicts[-1].passed, verdicts[-1].explain()


@pytest.mark.parametrize("first", range(0, MODELS, BATCH))
def test_a_model_over_ranks_is_the_model_of_one(first: int) -> None:
    splits = (drawn(seed, tp=SIZES[:15]) for seed in range(first, first + BATCH))
    assert [told for split in splits if (told := difference(split))] == []


@pytest.mark.parametrize("first", range(0, LARGE_MODELS, BATCH))
def test_a_model_over_many_ranks_is_the_model_of_one(first: int) -> None:
    splits = (drawn(seed, tp=SIZES[15:]) for seed in range(10_000 + first, 10_000 + first + BATCH))
    assert [told for split in splits if (told := difference(split))] == []


def replica_by_remainder(num_heads: int, num_kv_heads: int, *, tp: int, rank: int) -> Heads:
    """The planted bug: key/value heads go round, so that replicas stand beside other heads' queries."""
    own = heads(num_heads, num_kv_heads, tp=tp, rank=rank)
    return own if tp <= num_kv_heads else own._replace(kv=(rank % num_kv_heads,))


def every_replica_counts(num_heads: int, num_kv_heads: int, *, tp: int, rank: int) -> Heads:
    """The planted bug: a head's squares are summed once a replica."""
    own = heads(num_heads, num_kv_heads, tp=tp, rank=rank)
    return own._replace(counted_kv_heads=sum(head >= 0 for head in own.kv))


@pytest.mark.parametrize("op, deal", [
    ("attention", replica_by_remainder),
    ("qk_norm_rope", every_replica_counts),
    ("qk_sum_squares", every_replica_counts),
])  # fmt: skip
def test_heads_dealt_wrongly_are_caught(op: str, deal: object) -> None:
    verdicts = try_split(op, tp=16, cases=split_cases(op, 40), deal=deal)  # type: ignore[arg-type]
    assert not verdicts[-1].passed


def test_simulated_ranks_give_the_same_bits_run_after_run() -> None:
    split = Split(config="groups of 3", tp=3, dp=2, ep=3, tokens=((2, 5), (1, 2)))
    first, again = outcomes(split), outcomes(split)
    assert all(a.logits.equal(b.logits) for a, b in zip(first, again, strict=True))
