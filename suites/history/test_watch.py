"""Over many nights: hardly an alarm of nothing, and a step of 3 % within five nights."""

from __future__ import annotations

import numpy as np
import pytest

from minimax_m2.harness.history.panel import Again
from minimax_m2.harness.history.replay import false_events, recall
from minimax_m2.harness.history.simulated import OPS, Change, World, measured_again, simulated
from minimax_m2.harness.history.steps import Step
from minimax_m2.harness.history.watch import Watch, agrees

MONTH = 30.4


def test_sixty_nights_of_nothing_cry_at_most_twice() -> None:
    # 1,184 series over 60 nights, the first 30 of which teach the noise: one a month.
    assert false_events(seed=21, nights=60, copies=37).events <= 1


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_year_of_nothing_cries_once_a_month() -> None:
    found = false_events(seed=22, nights=365, copies=37)
    assert found.events / ((365 - 30) / MONTH) <= 1.0


def test_a_step_of_three_percent_is_found_within_five_nights() -> None:
    assert recall(seed=5, effect=0.03, within=5) >= 0.9


def test_without_a_second_look_nothing_would_be_worth_reading() -> None:
    """The re-run is what keeps the page quiet: where it always agrees, disturbed nights are events."""
    world = World(seed=21, nights=40, ops=[f"{op}.{copy}" for op in OPS for copy in range(8)], spread=True)
    panel = simulated(world)

    def agreeable(row: int, night: int) -> list[Again]:
        return [Again(float(panel.corrected[row, night]), float(panel.log_ratio[row, night]))] * 5

    cried = sum(len(found) for found in Watch(panel, agreeable).nights(30))
    told = sum(len(found) for found in Watch(panel, measured_again(world, panel)).nights(30))
    assert cried >= 10
    assert told <= 1


def test_without_a_rerun_two_nights_must_agree() -> None:
    world = World(seed=3, nights=36, changes=[Change(night=33, effect=0.2, ops=["linear"], hashes=True)])
    watch = Watch(simulated(world))
    first, second = watch.judged(33), watch.judged(34)
    assert first == []
    assert {watch.panel.series[one.suspicion.row].op for one in second} == {"linear"}
    assert {one.looks for one in second} == {"two nights"}


def test_an_error_that_rises_within_its_bound_is_told() -> None:
    panel = simulated(World(seed=4, nights=30))
    panel.share[2, 25:] *= 1.5
    watch = Watch(panel)
    told = [one.suspicion for night in range(20, 30) for one in watch.judged(night)]
    assert [(one.row, one.step.night) for one in told if one.metric == "error"] == [(2, 25)]


def test_an_error_that_falls_is_no_event() -> None:
    panel = simulated(World(seed=4, nights=30))
    panel.share[2, 25:] /= 1.5
    watch = Watch(panel)
    told = [one.suspicion.metric for night in range(20, 30) for one in watch.judged(night)]
    assert "error" not in told


STEP = Step(night=9, before=1.0, effect=0.05, errors=6.0, spread=0.01)


@pytest.mark.parametrize(
    "values, agreed",
    [
        ([1.05, 1.06, 1.04, 1.05, 1.05], True),
        ([1.05, 1.06, 1.04, 3.0, 3.0], True),  # two disturbed of five
        ([1.0, 1.0, 1.01, 1.3, 1.3], False),
        ([0.95, 0.94, 0.95, 0.96, 0.95], False),
        ([1.05, 1.05], False),  # two say too little
    ],
)
def test_reruns_agree_by_their_median(values: list[float], agreed: bool) -> None:
    assert agrees(np.array(values), STEP) is agreed
