"""At MiniMax-M2's width: faults are found there too, and 62 layers take the memory of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.lockstep import ranked
from minimax_m2.harness.drift.subjects import toy_subject
from minimax_m2.harness.drift.trajectory import Trajectory
from minimax_m2.harness.drift.wide import DrawnLayers, codes
from minimax_m2.harness.model_checks import SMALL
from minimax_m2.reference.weights import BlockQuantized, LayerWeights

MOST_BYTES = 12e9
# The program of a run that prints its own peak memory, as the kernel counts it.
PEAK = "import resource, sys; from minimax_m2.harness.cli import main; sys.argv[0] = 'm2check'\n" \
       "try: main()\nfinally: sys.stderr.write(f'\\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}')"  # fmt: skip
M2Check = Callable[..., CompletedProcess[str]]


def bits(layer: LayerWeights) -> list[torch.Tensor]:
    found = [getattr(layer, field.name) for field in fields(layer)]
    return [x.weight.view(torch.uint8) if isinstance(x, BlockQuantized) else x for x in found]


def test_a_layer_is_drawn_the_same_each_time_and_no_two_are_alike() -> None:
    layers = DrawnLayers(replace(SMALL, num_hidden_layers=3))
    assert all(torch.equal(a, b) for a, b in zip(bits(layers[1]), bits(layers[1]), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(bits(layers[1]), bits(layers[2]), strict=True))
    assert len(list(layers)) == len(layers[:]) == 3
    with pytest.raises(IndexError, match=r"layer 3 is outside 0\.\.2"):
        layers[3]


def test_drawn_codes_are_numbers_of_a_gain_near_1() -> None:
    weight = codes(np.random.Generator(np.random.Philox(1)), 256, 384).dequantized(torch.float64)
    assert bool(torch.isfinite(weight).all())
    # derived: the mean square of a scale drawn from 0.7..1.3 is 1.03
    assert abs(float(weight.square().sum(1).mean()) - 1.03) < 0.1


def test_a_model_whose_layers_are_not_kept_is_asked_for_its_steps_only(tmp_path: Path, m2check: M2Check) -> None:
    done = m2check(tmp_path, "drift", "--candidate", "plain", "--model", "m2-width:1", "--length", "2")
    assert done.returncode == 2
    assert "only --lockstep" in done.stderr
    assert m2check(tmp_path, "drift", "--candidate", "plain", "--model", "m2-width:x").returncode == 2


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_faults_at_m2_s_width_are_ranked_first(clean: Candidate, faults: dict[str, Fault]) -> None:
    trajectory = Trajectory(toy_subject(), offered=clean.offered())
    right = list(trajectory.cells(clean))
    assert [cell for cell in right if cell.is_wrong] == []
    first = []
    for index, fault in enumerate(faults.values()):
        place = (index % 2, fault.step)
        own = trajectory.cells(planted(clean, (place[0], fault)), trajectory.at(place))
        top = ranked([*own, *(cell for cell in right if cell.place != place)])[0]
        first.append(top.place == place and top.is_wrong)
    assert sum(first) >= 0.95 * len(faults)


@pytest.mark.nightly
@pytest.mark.timeout(14400)
def test_sixty_two_layers_stay_under_twelve_gigabytes(tmp_path: Path) -> None:
    words = ("drift", "--candidate", "ours", "--model", "m2-width", "--lockstep", "--length", "2", "--json")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert {cell["layer"] for cell in found["cells"]} == set(range(-1, 63))
    assert int(done.stderr.split()[-1]) * 1024 < MOST_BYTES
