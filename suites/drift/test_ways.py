"""One provider against itself run otherwise: over ranks, in another dtype, on a device, under another contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import ClassVar

import pytest
import torch

from minimax_m2.harness import devices
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.drift.adapters import in_dtype, over_ranks
from minimax_m2.harness.drift.answers import answers_of
from minimax_m2.harness.drift.asking import beside_candidate
from minimax_m2.harness.drift.bisect import blamed
from minimax_m2.harness.drift.budgeted_answers import budgeted_answers
from minimax_m2.harness.drift.calls import described
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.running import FREE, PINNED, Beside
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Subject, Trajectory
from minimax_m2.harness.expectation import Tensors, expectation
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.shrink import given

M2Check = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def short() -> Subject:
    return checkpoint_subject(None, None, length=16)


@pytest.fixture(scope="module")
def single() -> Subject:
    """The same in float32."""
    return checkpoint_subject(None, None, length=16, dtype=torch.float32)


@pytest.fixture(scope="module")
def alongside(short: Subject) -> Beside:
    return Beside(short)


@pytest.mark.parametrize("tp", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_ranks_that_share_every_call_are_wrong_nowhere(short: Subject, alongside: Beside, tp: int) -> None:
    """Query heads of tiny-m2 stand in groups of three, so two ranks hold a group each and four hold replicas."""
    candidate = Candidate(provider=over_ranks(plain(), tp))
    cells = list(Trajectory(short, offered=candidate.offered()).cells(candidate))
    assert {cell.outcome for cell in cells} == {"pass"}
    assert {"qk_norm_rope", "kv_cache"} <= {cell.step for cell in cells}
    assert not alongside.held(candidate, FREE).has_drifted


def test_a_fault_that_only_ranks_have_is_blamed_on_its_place(
    short: Subject, alongside: Beside, faults: dict[str, Fault]
) -> None:
    """One rank held against several: what differs is planted in the several alone."""
    candidate = planted(Candidate(provider=over_ranks(plain(), 2)), (1, faults["gate_and_up_exchanged"]))
    alone = answers_of(Candidate(provider=plain()))
    cells = list(Trajectory(short, offered=candidate.offered(), reference=alone).cells(candidate))
    found = blamed(cells, candidate, alongside, rest=alone)
    assert found.places == ((1, "experts"),)
    assert found.explains


@pytest.mark.parametrize("words", [
    ("plain@tp2",), ("plain", "--dtype", "float16"), ("plain@float32",),
], ids=" ".join)  # fmt: skip
def test_the_same_kernels_run_otherwise_leave_nothing_to_explain(
    tmp_path: Path, words: tuple[str, ...], m2check: M2Check
) -> None:
    done = m2check(tmp_path, "bisect", "model", "--candidate", *words, "--reference", "plain", "--length", "9")
    assert done.returncode == 0, done.stderr
    assert "there is no drift to explain" in done.stderr


def test_kernels_of_a_narrower_dtype_are_what_explains_their_drift(tmp_path: Path, m2check: M2Check) -> None:
    words = ("--candidate", "plain@bfloat16", "--dtype", "float16", "--length", "9", "--json")
    done = m2check(tmp_path, "bisect", "model", *words)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert {(0, "o_proj"), (3, "experts")} <= {tuple(place) for place in found["places"]}
    assert {cell["step"] for cell in found["cells"]} >= {"qkv", "attention", "o_proj", "experts"}


@pytest.mark.parametrize(
    "candidate",
    ["ours", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("plain", "plain@tp2", "transformers"))],
)
def test_a_right_model_in_float32_strays_no_further_than_budgets_foresee(
    tmp_path: Path, candidate: str, m2check: M2Check
) -> None:
    if candidate == "transformers":
        pytest.importorskip("transformers")
    done = m2check(tmp_path, "drift", "--candidate", candidate, "--dtype", "float32", "--length", "9", "--json")
    assert done.returncode == 0, done.stderr
    assert {run["mode"] for run in json.loads(done.stdout)["runs"]} == {FREE, PINNED}


@pytest.mark.parametrize("layer, name", [(0, "gain_of_two_percent"), (2, "summed_in_bfloat16")])
def test_a_fault_leaves_the_band_of_a_float32_model_behind_its_layer(
    single: Subject, faults: dict[str, Fault], layer: int, name: str
) -> None:
    candidate = planted(Candidate(provider=plain()), (layer, faults[name]))
    assert beside_candidate(single, candidate, lambda text, share: None).held(candidate, PINNED).leaves == layer + 1


def test_kernels_in_bfloat16_leave_the_band_of_a_float32_model_at_once(single: Subject) -> None:
    candidate = Candidate(provider=in_dtype(plain(), torch.bfloat16))
    assert beside_candidate(single, candidate, lambda text, share: None).held(candidate, PINNED).leaves == 1


def test_a_float32_model_is_bisected(tmp_path: Path, m2check: M2Check) -> None:
    plant = f"1={Path(__file__).with_name('faults') / 'gate_and_up_exchanged.py'}"
    words = ("--candidate", "plain", "--plant", plant, "--dtype", "float32", "--length", "9")
    done = m2check(tmp_path, "bisect", "model", *words)
    assert (done.returncode, "layer 1, experts explains all of the drift" in done.stderr) == (1, True), done.stderr


def test_drawn_errors_scatter_as_their_budget_foresees(single: Subject) -> None:
    call = Trajectory(single, offered=plain_in(torch.float32).offered()).at((1, "o_proj"))[0]
    right = expectation(given(call.op, call.arguments), described(call), call.op.full_contract(described(call), {}))
    assert isinstance(right, Tensors)
    expected = right.expected["y"]
    assert isinstance(expected, Budgeted)
    drawn = [budgeted_answers(lambda call: {}, seed)(call).double() - expected.value for seed in range(64)]
    z2 = torch.stack(drawn).square().mean(0) / expected.sigma.square()
    # derived: 64 draws of each of 2,048 elements and more; six standard deviations of a mean of chi squares
    assert abs(float(z2.mean()) - 1) < 6 * (2 / (64 * z2.numel())) ** 0.5
    assert not torch.equal(drawn[0], drawn[1])


def test_a_dtype_changes_what_the_model_is_computed_in_and_nothing_it_sees(short: Subject) -> None:
    calls = Trajectory(short, offered=plain_in(torch.float16).offered()).at((0, "qkv"))
    linear = plain_in(torch.float16).function("linear", (0, "qkv"))
    assert linear is not None
    x, weight = calls[0].arguments["x"], calls[0].arguments["weight"]
    found = linear(x, weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (x.half().float() @ weight.half().float().mT).half().bfloat16())


def plain_in(dtype: torch.dtype) -> Candidate:
    return Candidate(provider=in_dtype(plain(), dtype))


NORM = {"normalised": "dtype"}


def rounding_twice() -> Candidate:
    """Plain torch but for a norm that is stored before it is weighed, as vLLM's and transformers' are."""

    class Norm:
        contract: ClassVar = {"rms_norm": NORM}

        @staticmethod
        def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
            wide = x.float()
            return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight

    return Candidate(provider=from_object(Norm, name="twice"))


def test_two_contracts_are_each_judged_by_their_own(short: Subject) -> None:
    one = rounding_twice()
    trajectory = Trajectory(short, offered=one.offered(), reference=answers_of(Candidate(provider=plain())))
    assert {cell.outcome for cell in trajectory.cells(one, trajectory.at((2, "rms_norm")))} <= {"pass"}
    norms = [call for call in trajectory.calls if call.op.name == "rms_norm"]
    undeclared = replace(one, provider=replace(one.provider, contract={}))
    assert [cell for cell in trajectory.cells(one, norms) if cell.is_wrong] == []
    assert [cell for cell in trajectory.cells(undeclared, norms) if cell.is_wrong] != []


def test_a_device_s_tensors_come_back_and_its_cache_is_written(
    short: Subject, alongside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is this host's memory under the name of a GPU: every tensor is copied there and back."""
    copies = list[str]()

    def copied(value: object, device: str) -> object:
        copies.append(device)
        return value.clone() if isinstance(value, torch.Tensor) else value

    monkeypatch.setitem(devices.TORCH_DEVICES, "gpu", "cpu")
    monkeypatch.setattr("minimax_m2.harness.drift.answers._moved", copied)
    found = alongside.held(Candidate(provider=replace(plain(), device="gpu")), PINNED)
    assert not found.has_drifted
    assert copies


@pytest.mark.parametrize("candidate, told", [
    ("plain@tp1", "1 ranks share nothing; write @tp2 or more"),
    ("plain@tpu", "@tpu is unknown; write @cpu, @gpu, @npu, @tp2, @bfloat16"),
    pytest.param("ours@gpu", "device 'gpu' is not here: torch sees no CUDA device", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU is here")),
])  # fmt: skip
@pytest.mark.parametrize("command", [("drift",), ("bisect", "model")], ids=" ".join)
def test_a_way_that_is_not_here_is_said(
    tmp_path: Path, candidate: str, told: str, command: tuple[str, ...], m2check: M2Check
) -> None:
    done = m2check(tmp_path, *command, "--candidate", candidate, "--length", "9")
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("candidate", ["plain@gpu", "ours@gpu"])
def test_a_gpu_is_held_against_the_host(tmp_path: Path, candidate: str, m2check: M2Check) -> None:
    words = ("--candidate", candidate, "--reference", "plain", "--length", "9")
    done = m2check(tmp_path, "bisect", "model", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_what_is_wrong_on_a_gpu_alone_is_blamed_on_its_place(tmp_path: Path, m2check: M2Check) -> None:
    plant = f"2={Path(__file__).with_name('faults') / 'gate_and_up_exchanged.py'}"
    words = ("--candidate", "ours@gpu", "--plant", plant, "--reference", "plain", "--length", "9")
    done = m2check(tmp_path, "bisect", "model", *words)
    assert (done.returncode, "layer 2, experts explains all of the drift" in done.stderr) == (1, True), done.stderr
