"""``m2check bench --model`` and ``generate --model``: what they take, and what they say where they cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.commands_wide import wide_plan
from minimax_m2.harness.devices import absence


def m2check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minimax_m2.harness.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_plan_takes_loads_and_prompts_apart() -> None:
    plan, ranks = wide_plan({"layers": 3, "ranks": 2, "sums": "symmetric"}, ["1x4096", "8x32"], ["2x7"])
    assert (plan.layers, ranks, plan.sums) == (3, 2, "symmetric")
    assert (plan.loads, plan.prompts) == (((1, 4096), (8, 32)), ((2, 7),))
    assert wide_plan({}, ["1x4096"], [])[0].prompts == ((1, 4096),)


@pytest.mark.parametrize(
    ("setting", "load", "told"),
    [
        ({"layer": 3}, "1x1", "no field 'layer'; it has layers, tokens, ranks, seed, sums"),
        ({"layers": 63}, "1x1", "layers=63; MiniMax-M2 has 62"),
        ({"tokens": 0}, "1x1", "tokens=0; expected a number from 1"),
        ({"sums": "nccl"}, "1x1", "sums='nccl' is unknown; use ranks or symmetric"),
        ({}, "4096", "load '4096' names no sequences and tokens; write 8x4096"),
        ({}, "0x4096", "load '0x4096' names no sequences and tokens"),
    ],
)
def test_what_a_plan_does_not_take_is_named(setting: dict[str, object], load: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wide_plan(setting, [load], [])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("bench", "--model", "m3"), 2, "model 'm3' is unknown to bench"),
        (("bench", "--model", "m2", "--op", "rope"), 2, "takes one of --model MODEL and --op"),
        (("generate", "--model", "m2"), 2, "generate --model takes tiny-m2"),
        (("generate",), 2, "takes one of --op OP and --model MODEL"),
        (("generate", "--model", "tiny-m2", "--tokens", "3"), 0, "3 tokens in "),
    ],
)
def test_each_way_to_ask_for_a_model_ends_as_it_should(
    tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = m2check(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert told in done.stderr


@pytest.mark.skipif(absence("gpu") is None, reason="a GPU is here")
def test_a_model_without_its_device_is_not_measured(tmp_path: Path) -> None:
    done = m2check(tmp_path, "bench", "--model", "m2", "--device", "gpu")
    assert done.returncode == 5, done.stderr
    assert "nothing was measured" in done.stderr
