"""``m2check bench --model`` and ``generate --model``: what they take, and what they say where they cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from minimax_m2.harness.commands_bench import bench
from minimax_m2.harness.commands_known import generate
from minimax_m2.harness.commands_wide import wide_plan
from minimax_m2.harness.devices import absence
from minimax_m2.harness.wrong_use import WrongUse


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
        ({"sums": "nccl"}, "1x1", "sums='nccl' is unknown; use ranks, symmetric, fused"),
        ({}, "4096", "load '4096' names no sequences and tokens; write 8x4096"),
        ({}, "0x4096", "load '0x4096' names no sequences and tokens"),
    ],
)
def test_what_a_plan_does_not_take_is_named(setting: dict[str, object], load: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wide_plan(setting, [load], [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "m3"}, "model 'm3' is unknown to bench"),
        ({"model": "m2", "op": ["rope"]}, "takes one of --model MODEL and --op"),
        ({"model": "m2", "ablate": True, "load": ["1x8"]}, "--ablate compares on one rank, by batches of its own"),
        ({"model": "m2", "ablate": True, "set_": ["ranks=2"]}, "--ablate compares on one rank"),
    ],
)
def test_a_model_that_bench_cannot_time_is_wrong_use(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        bench(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "m2"}, "generate --model takes tiny-m2"),
        ({}, "takes one of --op OP and --model MODEL"),
        ({"op": "rope", "model": "tiny-m2"}, "takes one of --op OP and --model MODEL"),
    ],
)
def test_a_model_that_has_nothing_to_say_is_wrong_use(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        generate(**given)


def test_a_trained_model_continues_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        generate(model="tiny-m2", tokens=3)
    said = capsys.readouterr()
    assert ended.value.exit_code == 0
    assert "3 tokens in " in said.err
    assert said.out.strip()


@pytest.mark.parametrize("ablate", [False, True])
def test_a_model_that_does_not_fit_is_not_drawn(
    ablate: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minimax_m2.harness.model_bench.available_bytes", lambda: 10**9)
    monkeypatch.setattr("minimax_m2.harness.wide_model.random_fp8", None)
    with pytest.raises(typer.Exit) as ended:
        bench(model="m2", ablate=ablate)
    assert ended.value.exit_code == 5
    assert "62 layers do not fit" in capsys.readouterr().err


@pytest.mark.skipif(absence("gpu") is None, reason="a GPU is here")
def test_a_model_without_its_device_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        bench(model="m2", device="gpu")
    assert ended.value.exit_code == 5
    assert "nothing was measured" in capsys.readouterr().err
