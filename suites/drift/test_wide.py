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

from minimax_m2.harness.drift.answers import exact_answers
from minimax_m2.harness.drift.asking import Resume, streamed_cells
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault
from minimax_m2.harness.drift.planted_runs import wide_runs
from minimax_m2.harness.drift.resuming import resumed
from minimax_m2.harness.drift.spent import Meter
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.drift.wide import DrawnLayers, codes
from minimax_m2.harness.model_checks import SMALL
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, ModelWeights

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


class Stopped(Exception):
    """Raised in the middle of a run."""


def stop_at_the_last_layer(text: str, share: float) -> None:
    if text == "layer 3 of 3":
        raise Stopped


@pytest.fixture(scope="module")
def streamed() -> Subject:
    """Three narrow layers that are drawn as they are asked for."""
    norm = torch.ones(SMALL.hidden_size, dtype=torch.bfloat16)
    table = torch.randn(SMALL.vocab_size, SMALL.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()
    weights = ModelWeights(embed_tokens=table, layers=DrawnLayers(SMALL), norm=norm, lm_head=table)
    return Subject(name="narrow", config=SMALL, weights=weights, ids=torch.arange(5))


def test_a_run_that_was_ended_goes_on_behind_its_last_layer(
    tmp_path: Path, streamed: Subject, clean: Candidate
) -> None:
    whole = streamed_cells(streamed, clean, exact_answers, lambda text, share: None)
    resume, told = Resume(tmp_path / "half.safetensors", "this run"), list[str]()
    with pytest.raises(Stopped):
        streamed_cells(streamed, clean, exact_answers, stop_at_the_last_layer, resume=resume)
    meter = Meter()
    found = streamed_cells(
        streamed, clean, exact_answers, lambda text, share: told.append(text), resume=resume, meter=meter
    )
    assert told == ["layer 3 of 3"]
    assert meter.spent.parts == 2
    assert meter.spent.seconds > meter.before.seconds > 0
    assert meter.spent.peak_bytes >= meter.before.peak_bytes > 0
    assert found == whole
    assert not resume.path.exists()


def test_what_another_run_kept_is_refused(tmp_path: Path, streamed: Subject, clean: Candidate) -> None:
    path = tmp_path / "half.safetensors"
    with pytest.raises(Stopped):
        streamed_cells(streamed, clean, exact_answers, stop_at_the_last_layer, resume=Resume(path, "this run"))
    with pytest.raises(ValueError, match=r"is of another run \(this run\)"):
        resumed(path, asked="another")
    path.write_text("no tensors")
    with pytest.raises(ValueError, match="is no file that a run kept"):
        resumed(path, asked="this run")


def test_a_short_run_is_not_resumed(tmp_path: Path, m2check: M2Check) -> None:
    done = m2check(tmp_path, "drift", "--candidate", "plain", "--lockstep", "--length", "2", "--resume", "half")
    assert (done.returncode, "only --model m2-width" in done.stderr) == (2, True)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_faults_at_m2_s_width_are_ranked_first(faults: dict[str, Fault]) -> None:
    runs = list(wide_runs(list(faults.values())))
    assert len(runs) == 60
    assert sum(run.first for run in runs) >= 0.95 * len(runs)
    assert sum(run.wrong for run in runs) >= 0.85 * len(runs)


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
