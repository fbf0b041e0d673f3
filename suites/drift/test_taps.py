"""Taps change nothing: what the model computes under them is what it computes, and every step is shown once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from minimax_m2.harness.drift.answers import exact_answers
from minimax_m2.harness.drift.calls import EMBEDDING, Call, described, only_active
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.running import in_float64
from minimax_m2.harness.drift.trajectory import Subject, Trajectory, passed, walk
from minimax_m2.harness.op import Pack
from minimax_m2.harness.providers.plain import function_of
from minimax_m2.reference.model import MiniMaxM2

STEPS = ("input_norm", "qkv", "qk_norm_rope_cache", "attention", "o_proj", "post_attention_norm", "router", "experts")


def test_a_tapped_model_computes_what_the_model_does(tiny: Subject) -> None:
    whole = replace(in_float64(tiny), decoded=0)
    model = MiniMaxM2(whole.config, whole.weights)
    assert torch.equal(passed(whole, exact_answers, offered=()), model(whole.ids))


def test_every_step_is_shown_once_a_phase(trajectory: Trajectory, tiny: Subject) -> None:
    layers = tiny.config.num_hidden_layers
    places = [(layer, step) for layer in range(layers) for step in STEPS]
    beside = [(EMBEDDING, "embedding"), (layers, "final_norm"), (layers, "lm_head")]
    shown = Counter((call.place, call.phase) for call in trajectory.calls)
    assert shown == Counter((place, phase) for place in (*places, *beside) for phase in ("prefill", "decode"))


def test_a_candidate_with_parts_of_a_step_is_judged_at_the_parts(tiny: Subject) -> None:
    shown: list[Call] = []
    walk(tiny, shown.append, offered=("rms_norm", "rope", "router_gemm"))
    steps = {call.step for call in shown}
    assert {"q_norm", "k_norm", "rope", "router_gemm"} <= steps
    assert not {"qk_norm_rope_cache", "router"} & steps


def test_calls_keep_the_cache_that_they_read(trajectory: Trajectory) -> None:
    prefill, decode = trajectory.at((0, "qk_norm_rope_cache"))
    last = int(decode.arguments["slots"][0])
    before = decode.arguments["k_cache"].flatten(0, 1)
    assert bool(before[last].isnan().all())
    assert not bool(before[:last].isnan().any())
    assert bool(prefill.arguments["k_cache"].isnan().all())


@pytest.mark.parametrize("step, fields", [
    ("qkv", {"H": 256, "N": 640, "dtype": "bfloat16", "out": "bfloat16"}),
    ("attention", {"Hk": 2, "group": 3, "D": 64, "cache": "bfloat16", "page": 16}),
    ("router", {"E": 16, "K": 4, "bias": "small"}),
    ("experts", {"E": 16, "K": 4, "I": 128, "H": 256, "quant": "none"}),
    ("qk_norm_rope_cache", {"Hq": 6, "Hk": 2, "D": 64, "R": 32, "table": "float32", "weights": "model"}),
])  # fmt: skip
def test_a_call_is_described_as_the_case_that_it_is(trajectory: Trajectory, step: str, fields: dict[str, Any]) -> None:
    case = described(trajectory.at((1, step))[0])
    assert {name: case[name] for name in fields} == fields


def test_a_part_of_a_step_is_described_as_the_case_that_it_is(tiny: Subject) -> None:
    shown: list[Call] = []
    walk(tiny, shown.append, offered=("qk_norm_rope", "routing"))
    found = {call.step: described(call) for call in shown}
    assert (found["qk_norm_rope"]["weights"], found["qk_norm_rope"]["stats"]) == ("model", "none")
    assert (found["routing"]["E"], found["routing"]["K"], found["routing"]["dtype"]) == (16, 4, "float32")


def test_experts_that_nobody_chose_are_left_out_without_a_change(trajectory: Trajectory) -> None:
    call = trajectory.at((2, "experts"))[1]
    small = only_active(call)
    packed: Pack = small.arguments["packed"]
    assert len(packed.arguments["w13"]) == len(call.arguments["ids"].unique()) < 16
    function, pack = function_of("experts"), function_of("pack_experts")
    assert function is not None
    assert pack is not None
    results = []
    for one in (call, small):
        laid_out: Pack = one.arguments["packed"]
        arguments = one.arguments | {"packed": pack(**laid_out.arguments)}
        results.append(one.op.bind(function, arguments)())
    assert torch.equal(*results)


def test_a_stream_of_layers_is_asked_for_once_and_in_order(tiny: Subject, clean: Candidate) -> None:
    asked: list[int] = []

    class Layers(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    lazy = replace(tiny, weights=replace(tiny.weights, layers=Layers(tiny.weights.layers)))
    walk(lazy, lambda call: None, offered=clean.offered())
    assert asked == list(range(tiny.config.num_hidden_layers))
