"""Every choice of code path is a pure function: its truth table stands here, and ``m2check doctor`` prints its text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from minimax_m2.harness.doctor import examine
from minimax_m2.harness.providers.ours import dispatch_predicates
from minimax_m2.kernels.cpu import extension

TRUTHS = {
    "serial_tokens(1, 1000000)": True,
    "serial_tokens(2, 16383)": True,
    "serial_tokens(2, 16384)": False,
    "serial_tokens(0, 128)": True,
    "serial_logits(31, 256)": True,
    "serial_logits(32, 256)": False,
    "serial_logits(1, 8191)": True,
    "serial_products(65535)": True,
    "serial_products(65536)": False,
    "quantises_activations(Dtype::int8)": True,
    "quantises_activations(Dtype::float8_e4m3)": False,
    "quantises_activations(Dtype::bfloat16)": False,
    "multiplies_bytes(Isa::portable)": False,
    "multiplies_bytes(Isa::avx2)": False,
    "multiplies_bytes(Isa::avx512)": False,
    "multiplies_bytes(Isa::avx512_bf16)": True,
    "multiplies_bytes(Isa::amx)": True,
    "has_tile_product(Dtype::bfloat16)": True,
    "has_tile_product(Dtype::float16)": False,
    "has_tile_product(Dtype::float32)": False,
    "has_tile_product(Dtype::float8_e4m3)": False,
    "has_tile_product(Dtype::int8)": False,
}


def compiles(claims: list[str], folder: Path) -> bool:
    """Whether the compiler, which evaluates predicates itself and so sees them read arguments only, believes claims."""
    source = folder / "claims.cpp"
    asserted = "\n".join(f"static_assert({claim});" for claim in claims)
    source.write_text(f'#include "dispatch.h"\nnamespace minimax_m2 {{\n{asserted}\n}}\n')
    command = [extension.compiler(), "-std=c++20", "-fsyntax-only", f"-I{extension.SOURCE_DIR}", str(source)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_truth_tables_hold(tmp_path: Path) -> None:
    assert compiles([f"{call} == {str(value).lower()}" for call, value in TRUTHS.items()], tmp_path)


@pytest.mark.parametrize(
    "call", ["serial_logits(32, 256)", "multiplies_bytes(Isa::avx512)", "has_tile_product(Dtype::int8)"]
)
def test_a_false_row_does_not_compile(call: str, tmp_path: Path) -> None:
    assert not compiles([call], tmp_path)


def test_every_predicate_has_a_table_and_a_line_of_the_doctor() -> None:
    predicates = dispatch_predicates()
    assert {name.partition("(")[0] for name in predicates} == {call.partition("(")[0] for call in TRUTHS}
    printed = {symptom.what: symptom.found for symptom in examine()}
    assert {f"cpu dispatch {name}": text for name, text in predicates.items()}.items() <= printed.items()
    assert "not here" in printed["cpu amx"] or printed["cpu amx"] == "runs"
