"""Contenders: where they run, how wide their cases are, and that nobody is believed who beats the device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from minimax_m2.harness import contenders
from minimax_m2.harness.contenders import (
    CODES,
    Refused,
    Side,
    believable,
    compared,
    device_for,
    factors,
    shaped,
    timing,
)
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import clocks
from minimax_m2.harness.peers import NotHere
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.roofline import Ceiling, Roof
from minimax_m2.harness.verdict import Outcome

ROOF = Roof({1 << 30: 1e12}, {"float32": 1e12, "bfloat16": 2e12, CODES: 4e12}, Ceiling(5e12, {"bfloat16": 1e15}))


def test_providers_meet_where_the_peer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "absence", lambda device: None)
    assert device_for(("ours", "plain")) == "cpu"
    assert device_for(("ours", "vllm-cuda")) == "gpu"
    assert device_for(("ours", "zentorch")) == "cpu"
    assert device_for(("ours", "plain"), "gpu") == "gpu"


def test_peers_of_two_devices_cannot_meet() -> None:
    with pytest.raises(ValueError, match="vllm-cuda and zentorch run on cpu and gpu; compare peers of one device"):
        device_for(("vllm-cuda", "zentorch"))


def test_a_device_without_a_stopwatch_is_refused() -> None:
    with pytest.raises(ValueError, match="device='npu' cannot be timed; use one of cpu, gpu"):
        device_for(("ours", "plain"), "npu")


def test_an_absent_device_is_not_here_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "absence", lambda device: "torch sees no CUDA device")
    with pytest.raises(NotHere, match="device 'gpu' is not here: torch sees no CUDA device"):
        device_for(("ours", "torch-cuda"))


def test_a_timed_case_of_many_tokens_is_as_wide_as_it_is_said() -> None:
    case = shaped(find_op("experts"), "decode", {"T": 4096, "E": 256, "K": 8, "active": 256})
    assert [case[name] for name in ("T", "E", "K", "H", "I")] == [4096, 256, 8, 3072, 1536]


def test_e4m3_weights_are_held_against_products_of_e4m3() -> None:
    assert factors(find_op("experts").case(quant="weights"), ROOF) == CODES
    assert factors(find_op("fp8_linear").case(), ROOF) == CODES
    assert factors(find_op("experts").case(), ROOF) == "bfloat16"
    assert factors(find_op("fp8_linear").case(), Roof({}, {"float32": 1.0})) == "bfloat16"


def test_right_outputs_that_came_too_soon_are_impossible() -> None:
    op = find_op("rms_norm")
    case = op.case(T=2)
    large = case.but(T=10**6)
    verdict = replace(judge(case, plain()), case=large)
    fast, slow = (timing(op, large, "decode", "rms_norm", [s], ROOF, clock="graph") for s in (1e-6, 1e-4))
    found = believable(op, verdict, fast, ROOF)
    assert found.outcome is Outcome.IMPOSSIBLE
    assert "TB/s" in found.evidence[0]
    assert believable(op, verdict, slow, ROOF).outcome is Outcome.PASS


def test_who_does_not_offer_an_op_is_named() -> None:
    def swiglu() -> None: ...

    other = Side(from_object(SimpleNamespace(swiglu=swiglu), name="other"), "", None)
    op = find_op("rms_norm")
    with pytest.raises(Refused, match="other: it does not offer rms_norm"):
        compared(op, op.case(T=2), "decode", {}, (Side(plain(), "", None), other), 0.0, ROOF)


def test_a_side_of_a_gpu_is_timed_by_graphs() -> None:
    nothing = Provider(name="p", device="gpu", functions=lambda name: None)
    assert Side(nothing, "", None).clock == "graph"
    assert Side(plain(), "", None).clock == "stopwatch"


def test_clocks_are_a_gpus_alone() -> None:
    assert clocks("cpu") == {}
