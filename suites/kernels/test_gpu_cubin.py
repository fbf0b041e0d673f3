"""Level G1: every GPU kernel compiles for every architecture, and its machine code is what it should be."""

from __future__ import annotations

import pytest

from minimax_m2.harness.case import Case
from minimax_m2.harness.cubin import CAPABILITIES, compiled, launches_of
from minimax_m2.harness.judge import build, call
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import Contracts, function_of, refusals
from minimax_m2.harness.sampling import sampled

triton = pytest.importorskip("triton", reason="Triton is not installed; the levels G0 and G1 are not here")

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]
SAMPLED = 6
# A thread has 255 registers; what a kernel keeps beyond them goes to memory and back.
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

# Warps that divide the work start with 168 registers each, before they trade them: what they set up may wait in memory.
SPILLED_BYTES = {"prefill_kernel": 16}


@pytest.mark.gpu
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("op", [pytest.param(name, id=f"G1-{name}") for name in BUILT])
def test_a_kernel_compiles_and_spills_nothing(op: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", str(capability))
    launches = [
        launch
        for shape in ("decode", "prefill")
        for launch in launches_of(lambda shape=shape: called(find_op(op).shape(shape)))  # type: ignore[misc]
    ]
    assert launches, f"{op} launched no Triton kernel"
    for launch in {repr(launch): launch for launch in launches}.values():
        found = compiled(launch, capability)
        most = SPILLED_BYTES.get(found.kernel, 0)
        assert found.spilled_bytes <= most, f"{found.kernel} spills {found.spilled_bytes} bytes on sm_{capability}"
        assert found.shared_bytes <= SHARED_BYTES[capability], found
        assert "EXIT" in found.instructions, f"the disassembly of {found.kernel} was not read"


@pytest.mark.gpu
@pytest.mark.parametrize("op", [pytest.param(name, id=f"G1-{name}") for name in BUILT])
def test_other_dtypes_and_options_compile(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", "90")
    built = refusals("gpu")
    cases = [case for case in sampled(find_op(op), SAMPLED) if case.get("T", 1) and built(find_op(op), case) is None]
    launches = [launch for case in cases for launch in launches_of(lambda case=case: called(case))]  # type: ignore[misc]

    for launch in {repr(launch): launch for launch in launches}.values():
        assert compiled(launch, 90).registers > 0


@pytest.mark.gpu
def test_codes_are_converted_by_hardware_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for capability in (80, 90):
        monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", str(capability))
        (launch,) = launches_of(lambda: called(find_op("block_quant").shape("prefill")))
        found[capability] = compiled(launch, capability).instructions

    assert "F2FP" in found[90]
    assert "F2FP" not in found[80]


@pytest.mark.gpu
def test_a_spill_is_seen() -> None:
    (launch,) = launches_of(lambda: called(find_op("rms_norm").shape("prefill")))
    starved = launch.with_options(maxnreg=24)

    assert compiled(starved, 90).spilled_bytes > 0


def called(case: Case) -> object:
    """Call our GPU kernel on the CPU tensors of a case; the launches are recorded, not run."""
    provider = Provider(name="ours", device="cpu", functions=lambda n: function_of("gpu", n), contract=Contracts("gpu"))
    op, function = find_op(case.op), provider.functions(case.op)
    assert function is not None
    return call(op, function, build(op, case, provider))
