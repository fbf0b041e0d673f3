"""The CPU variant is a pure function of processor flags and the forced name; switching is one int."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minimax_m2.kernels.cpu import isa

NONE: frozenset[str] = frozenset()
HASWELL = frozenset({"avx2", "fma", "f16c"})
SKYLAKE_X = HASWELL | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
COOPER_LAKE = SKYLAKE_X | {"avx512_bf16", "avx512_vnni"}  # no VBMI
ZEN4 = COOPER_LAKE | {"avx512vbmi"}
KNIGHTS_LANDING = HASWELL | {"avx512f", "avx512cd"}  # no BW, DQ, VL
SAPPHIRE_RAPIDS = ZEN4 | {"amx_tile", "amx_bf16", "amx_int8"}  # as the processor says it, before Linux is asked
PERMITTED = SAPPHIRE_RAPIDS | {isa.TILE_PERMISSION}

pytestmark = pytest.mark.skipif(isa.COMPILED == ("portable",), reason="variants beyond portable are x86-64's")


@pytest.mark.parametrize(
    ("flags", "forced", "chosen"),
    [
        (NONE, None, "portable"),
        (HASWELL, None, "avx2"),
        (HASWELL - {"f16c"}, None, "portable"),
        (SKYLAKE_X, None, "avx512"),
        (KNIGHTS_LANDING, None, "avx2"),
        (COOPER_LAKE, None, "avx512"),
        (ZEN4 - {"avx512_vnni"}, None, "avx512"),
        (ZEN4, None, "avx512_bf16"),
        (ZEN4, "avx512", "avx512"),
        (ZEN4, "avx2", "avx2"),
        (ZEN4, "portable", "portable"),
        (HASWELL, "avx2", "avx2"),
        (SAPPHIRE_RAPIDS, None, "avx512_bf16"),
        (PERMITTED, None, "amx"),
        (PERMITTED - {"amx_int8"}, None, "avx512_bf16"),
        (PERMITTED, "avx512_bf16", "avx512_bf16"),
        (PERMITTED, "amx", "amx"),
    ],
)
def test_the_highest_or_the_forced_variant_is_chosen(flags: frozenset[str], forced: str | None, chosen: str) -> None:
    assert isa.choose(flags, forced) == chosen


@pytest.mark.parametrize(
    ("flags", "forced", "reason"),
    [
        (HASWELL, "avx512", "needs processor flags avx512bw, avx512dq, avx512f, avx512vl"),
        (ZEN4, "amx", "needs processor flags amx_bf16, amx_int8, amx_tile, tile_permission"),
        (SAPPHIRE_RAPIDS, "amx", "needs processor flags tile_permission"),
        (ZEN4, "avx1024", "is unknown"),
        (NONE, "avx2", "needs processor flags avx2, f16c, fma"),
    ],
)
def test_a_variant_this_machine_lacks_is_an_error_that_lists_what_it_has(
    flags: frozenset[str], forced: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"MINIMAX_M2_CPU_ISA='{forced}' {reason}.*this machine runs portable"):
        isa.choose(flags, forced)


@pytest.mark.parametrize("name", isa.available())
def test_forced_holds_inside_its_block_only(name: str) -> None:
    before = isa.current()
    with isa.forced(name):
        assert isa.current() == name
    assert isa.current() == before


def test_the_environment_variable_forces_a_lower_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_CPU_ISA", "portable")
    program = "from minimax_m2.kernels.cpu import isa; print(isa.current())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "portable"


def test_tile_registers_are_asked_for_not_tried() -> None:
    assert (isa.TILE_PERMISSION in isa.cpu_flags()) == ("amx_tile" in isa.cpu_flags() and isa.tiles_permitted())
