"""Steps are found where they are, and neither a bad night nor a drifting machine is one."""

from __future__ import annotations

import numpy as np
import pytest

from minimax_m2.harness.history.panel import Floats
from minimax_m2.harness.history.steps import Step, dated, steps

NIGHTS = 60


def quiet(sigma: float = 0.01, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(3.0, sigma, (1, NIGHTS))


def found(x: Floats) -> list[Step]:
    return steps(x)[0]


@pytest.mark.parametrize("effect", [-0.05, 0.05])
def test_a_step_is_found_at_its_night_with_its_size(effect: float) -> None:
    x = quiet()
    x[0, 40:] += effect
    (step,) = found(x)
    assert step.night == 40
    assert abs(step.effect - effect) < 0.01
    assert step.errors > 5


def test_a_series_without_a_step_has_none() -> None:
    x = np.concatenate([quiet(seed=seed) for seed in range(200)])
    assert sum(map(len, steps(x))) == 0


def test_a_single_bad_night_is_no_step() -> None:
    x = quiet()
    x[0, [20, 33]] += 0.6
    assert found(x) == []


def test_a_step_below_what_anybody_acts_on_is_none() -> None:
    x = quiet(sigma=0.001)
    x[0, 30:] += 0.015
    assert found(x) == []


def test_nights_that_follow_each_other_count_for_less() -> None:
    rng, x = np.random.default_rng(3), np.zeros((100, 120))
    for night in range(1, 120):
        x[:, night] = 0.8 * x[:, night - 1] + rng.normal(0, 0.01, 100)
    # Independent nights of the same deviation that stepped like these would be told in most series.
    assert sum(map(bool, steps(x + 3.0))) <= 15


def test_missing_nights_move_nothing() -> None:
    x = quiet()
    x[0, 40:] += 0.05
    x[0, 5:12] = np.nan
    x[0, 41] = np.nan
    (step,) = found(x)
    assert step.night == 40


def test_two_steps_are_two() -> None:
    x = quiet()
    x[0, 20:] += 0.08
    x[0, 45:] -= 0.08
    assert [step.night for step in found(x)] == [20, 45]


def test_a_series_that_was_never_measured_is_left_alone() -> None:
    assert found(np.full((1, NIGHTS), np.nan)) == []


@pytest.mark.parametrize("nights", [1, 2, 3, 9])
def test_a_step_is_dated_however_new_it_is(nights: int) -> None:
    x = np.concatenate([quiet(sigma=0.01, seed=seed) for seed in range(50)])[:, : 40 + nights]
    x[:, 40:] += 0.08
    assert sum(dated(row, 39) == 40 for row in x) >= 48
