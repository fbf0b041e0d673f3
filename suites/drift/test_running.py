"""Whole runs: right models stay within their band, a fault leaves it, ties are told from real differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from minimax_m2.harness.drift.answers import right_answers, stochastic
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.running import FREE, PINNED, Beside, Flip, curve, interval, observed, reach
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.providers.transformers_ops import transformers_ops
from minimax_m2.harness.quantiles import student


def test_a_right_candidate_stays_within_the_band(beside: Beside, clean: Candidate) -> None:
    found = beside.held(clean, PINNED)
    assert found.leaves is None
    assert all(flip.is_tie for flip in found.flips)
    assert all(odd.is_tie for odd in found.odd)
    assert 0 < found.curve[-1] < found.high[-1]


def test_transformers_stays_within_the_band(beside: Beside) -> None:
    pytest.importorskip("transformers")
    assert beside.held(Candidate(provider=transformers_ops()), PINNED).leaves is None


@pytest.mark.parametrize("layer", [0, 2])
def test_a_fault_leaves_the_band_behind_its_layer(
    beside: Beside, clean: Candidate, faults: dict[str, Fault], layer: int
) -> None:
    found = beside.held(planted(clean, (layer, faults["experts_exchanged"])), PINNED)
    assert found.leaves == layer + 1
    assert found.divergence > 10 * beside.held(clean, PINNED).divergence


def test_pinned_experts_take_the_chaos_of_routing_out(beside: Beside, tiny: Subject) -> None:
    """Of right runs that choose freely one flip moves the stream as much as all roundings do together."""
    free = [observed(tiny, right_answers(seed), offered=(), pin=None) for seed in range(len(beside.right))]
    far, near = (max(curve(run, beside.truth)[-1] for run in runs) for runs in (free, beside.right))
    assert far > 1.5 * near


@pytest.mark.parametrize("window", [0, *(pytest.param(w, marks=pytest.mark.nightly) for w in range(1, 12))])
@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.nightly)], ids=["plain", "ours"])
def test_a_right_candidate_that_chooses_freely_stays_within_the_band_of_its_choices(window: int, index: int) -> None:
    subject = checkpoint_subject(None, None, length=24 * (window + 1))
    subject = replace(subject, ids=subject.ids[-24:])
    provider = (plain, ours)[index]()
    found = Beside(subject).held(Candidate(provider=provider, variant=provider.variants[-1]), FREE)
    assert not found.has_drifted
    assert all(one.is_tie for one in found.odd)


def test_a_free_run_with_a_fault_leaves_the_band_of_its_own_choices(
    beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    assert beside.held(planted(clean, (1, faults["norm_per_head"])), FREE).leaves == 2


def test_a_free_run_that_chooses_wrongly_is_told_by_its_choices_not_by_its_arithmetic(
    beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    found = beside.held(planted(clean, (1, faults["bias_ignored"])), FREE)
    assert {flip.layer for flip in found.flips if not flip.is_tie} == {1}
    assert found.leaves is None
    assert found.has_drifted


def test_a_router_without_its_bias_makes_flips_that_are_no_ties(
    beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    flips = beside.held(planted(clean, (1, faults["bias_ignored"])), PINNED).flips
    assert any(flip.layer == 1 and not flip.is_tie for flip in flips)


def test_with_the_experts_given_the_candidate_computes_with_them(
    beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    """What the router alone chooses wrong does not reach the stream; its weights there are the reference's."""
    found = beside.held(planted(clean, (1, faults["bias_ignored"])), PINNED)
    assert found.leaves is None


def test_a_gap_beyond_what_right_models_stray_is_no_tie() -> None:
    flip = Flip(layer=0, token=3, chosen=1, left=2, gap=0.5, room=reach([0.001, -0.002, 0.001]))
    assert not flip.is_tie
    assert Flip(layer=0, token=3, chosen=1, left=2, gap=0.001, room=flip.room).is_tie


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    assert math.isclose(student(4, 1e-3), 7.173, rel_tol=1e-3)  # derived: published table of the t distribution
    assert math.isclose(student(9, 0.025), 2.262, rel_tol=1e-3)  # derived: published table of the t distribution


def test_an_interval_encloses_the_errors_it_comes_from() -> None:
    errors = [1.0e-3, 1.1e-3, 1.2e-3, 0.9e-3, 1.0e-3]
    low, high = interval(errors)
    assert low < min(errors) < max(errors) < high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_random_rounding_has_no_bias_and_leaves_what_is_representable(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    eps = torch.finfo(dtype).eps
    between = torch.full((4096,), 1 + eps / 4, dtype=torch.float64)
    drawn = stochastic(between, dtype, generator).double()
    assert set(drawn.unique().tolist()) == {1.0, 1 + eps}
    # derived: a quarter of 4,096 draws, six standard deviations of their mean
    assert abs(float((drawn - 1).mean()) / eps - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 4096)
    exact = torch.tensor([0.0, 1.5, -3.0], dtype=torch.float64)
    assert torch.equal(stochastic(exact, dtype, generator).double(), exact)
