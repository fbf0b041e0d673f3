"""Bisecting a model names the places that explain its drift, and says when lock-step alone did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from minimax_m2.harness.drift.bisect import BUT, ONLY, WHOLE, blamed
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.ddmin import ddmin
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.running import Beside
from minimax_m2.harness.drift.trajectory import Trajectory


@pytest.mark.parametrize("layer, name", [
    (2, "experts_exchanged"), (0, "norm_per_head"), (3, "heads_tiled"), (1, "bias_ignored"),
])  # fmt: skip
def test_a_single_fault_is_confirmed_by_two_runs(
    trajectory: Trajectory, beside: Beside, clean: Candidate, faults: dict[str, Fault], layer: int, name: str
) -> None:
    candidate = planted(clean, (layer, faults[name]))
    found = blamed(list(trajectory.cells(candidate)), candidate, beside)
    assert found.places == ((layer, faults[name].step),)
    assert found.explains
    assert not found.by_ddmin
    assert [(trial.told, trial.drifts) for trial in found.trials] == [(WHOLE, True), (ONLY, True), (BUT, False)]


def test_two_faults_are_blamed_together(
    trajectory: Trajectory, beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    candidate = planted(clean, (0, faults["gate_and_up_exchanged"]), (3, faults["norm_per_head"]))
    found = blamed(list(trajectory.cells(candidate)), candidate, beside)
    assert set(found.places) == {(0, "experts"), (3, "qk_norm_rope_cache")}
    assert found.explains


def test_a_right_candidate_is_blamed_for_nothing(trajectory: Trajectory, beside: Beside, clean: Candidate) -> None:
    found = blamed(list(trajectory.cells(clean)), clean, beside)
    assert (found.cells, found.places, found.explains) == ((), (), False)
    assert [trial.drifts for trial in found.trials] == [False]


def test_where_lock_step_saw_nothing_the_places_are_searched_for(
    trajectory: Trajectory, beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    """As of a kernel that is right on the input it is shown and wrong on the one it meets in the model."""
    candidate = planted(clean, (1, faults["experts_exchanged"]))
    unseen = [replace(cell, outcome="pass", used=0.5) for cell in trajectory.cells(candidate)]
    found = blamed(unseen, candidate, beside)
    assert found.by_ddmin
    assert found.places == ((1, "experts"),)
    assert found.explains


def test_a_flag_that_explains_nothing_is_not_believed(
    trajectory: Trajectory, beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    candidate = planted(clean, (1, faults["experts_exchanged"]))
    cells = [
        replace(cell, outcome="wrong" if cell.place == (3, "o_proj") else "pass")
        for cell in trajectory.cells(candidate)
    ]
    found = blamed(cells, candidate, beside)
    assert found.by_ddmin
    assert found.places == ((1, "experts"),)


def test_an_error_that_the_whole_does_not_feel_is_flagged_and_said_to_explain_nothing(
    trajectory: Trajectory, beside: Beside, clean: Candidate, faults: dict[str, Fault]
) -> None:
    candidate = planted(clean, (1, faults["mean_over_one_channel_less"]))
    found = blamed(list(trajectory.cells(candidate)), candidate, beside)
    assert [cell.place for cell in found.cells] == [(1, "post_attention_norm")]
    assert not found.trials[0].drifts
    assert not found.explains


@pytest.mark.parametrize("culprits", [{3}, {0, 17}, {5, 6, 30}])
def test_ddmin_finds_a_smallest_failing_part(culprits: set[int]) -> None:
    def fails(part: Sequence[int]) -> bool:
        return culprits <= set(part)

    assert set(ddmin(range(31), fails)) == culprits


def test_ddmin_refuses_what_does_not_fail() -> None:
    with pytest.raises(ValueError, match="do not fail"):
        ddmin([1, 2, 3], lambda part: False)
