"""Level G1: every GPU kernel compiles for every architecture, and its machine code is what it should be."""

from __future__ import annotations

import pytest

from minimax_m2.harness.cubin import CAPABILITIES, compiled, launches_of
from minimax_m2.harness.judge import build, call
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import Contracts, function_of

triton = pytest.importorskip("triton", reason="Triton is not installed; the levels G0 and G1 are not here")

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]
# A thread has 255 registers; what a kernel keeps beyond them goes to memory and back.
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


@pytest.mark.gpu
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("op", [pytest.param(name, id=f"G1-{name}") for name in BUILT])
def test_a_kernel_compiles_and_spills_nothing(op: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", str(capability))
    launches = [
        launch
        for shape in ("decode", "prefill")
        for launch in launches_of(lambda shape=shape: called(op, shape))  # type: ignore[misc]
    ]
    assert launches, f"{op} launched no Triton kernel"
    for launch in {repr(launch): launch for launch in launches}.values():
        found = compiled(launch, capability)
        assert found.spilled_bytes == 0, f"{found.kernel} spills {found.spilled_bytes} bytes on sm_{capability}"
        assert found.shared_bytes <= SHARED_BYTES[capability], found
        assert "EXIT" in found.instructions, f"the disassembly of {found.kernel} was not read"


@pytest.mark.gpu
def test_codes_are_converted_by_hardware_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for capability in (80, 90):
        monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", str(capability))
        (launch,) = launches_of(lambda: called("block_quant", "prefill"))
        found[capability] = compiled(launch, capability).instructions

    assert "F2FP" in found[90]
    assert "F2FP" not in found[80]


@pytest.mark.gpu
def test_a_spill_is_seen() -> None:
    (launch,) = launches_of(lambda: called("rms_norm", "prefill"))
    starved = launch.with_options(maxnreg=24)

    assert compiled(starved, 90).spilled_bytes > 0


def called(op: str, shape: str) -> object:
    """Call our GPU kernel on CPU tensors of a named shape; the launches are recorded, not run."""
    provider = Provider(name="ours", device="cpu", functions=lambda n: function_of("gpu", n), contract=Contracts("gpu"))
    declared = find_op(op)
    function = provider.functions(op)
    assert function is not None
    return call(declared, function, build(declared, declared.shape(shape), provider))
