"""Libraries are built once, whole or not at all, and each object holds the instructions its name promises."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minimax_m2.kernels.cpu import extension, isa

# Leaves a log line per call and an empty target, so that builds cost nothing.
FAKE_COMPILER = """#!/bin/sh
test "$1" = --version && { echo "fake 1.0"; exit 0; }
for target in "$@"; do :; done
echo "$target" >> "$(dirname "$0")/log"
sleep 0.02
touch "$target"
"""


@pytest.fixture
def fake_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of two ops and a continuation, a fake compiler, and an empty cache; returns the source folder."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("swiglu", "swiglu_binding", "swiglu_rows", "swiglu_quant", "swiglu_quant_binding"):
        (sources / f"{name}.cpp").write_text('#include "vector.h"\n')
    (sources / "vector.h").write_text('#include "deeper.h"\n')
    (sources / "deeper.h").write_text("// one\n")
    fake = tmp_path / "fake"
    fake.write_text(FAKE_COMPILER)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(extension, "SOURCE_DIR", sources)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("MINIMAX_M2_CACHE", str(tmp_path / "cache"))
    return sources


def test_a_continuation_belongs_to_the_longest_stem(fake_build: Path) -> None:
    assert extension.ops() == ["swiglu", "swiglu_quant"]
    assert [path.name for path in extension.kernel_sources("swiglu")] == ["swiglu.cpp", "swiglu_rows.cpp"]
    assert [path.name for path in extension.kernel_sources("swiglu_quant")] == ["swiglu_quant.cpp"]


def test_a_tile_unit_is_compiled_for_amx_alone(fake_build: Path) -> None:
    (fake_build / "swiglu_amx.cpp").write_text("// tiles\n")
    compiled = [f"{source.stem}.{name}" for source, name in extension.units("swiglu")]
    assert [name for name in compiled if "amx" in name] == ["swiglu_amx.amx"] * ("amx" in isa.COMPILED)
    assert "swiglu_rows.portable" in compiled
    assert [extension.has_tiles(op) for op in extension.ops()] == [True, False]


def test_the_key_follows_headers_of_headers(fake_build: Path) -> None:
    before = extension.build_key("swiglu")
    (fake_build / "deeper.h").write_text("// two\n")
    assert extension.build_key("swiglu") != before


def test_the_key_forgets_where_torch_lies_but_no_flag(fake_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(folder: Path, *flags: str) -> str:
        monkeypatch.setattr(extension, "TORCH_DIR", folder)
        monkeypatch.setattr(extension, "BINDING_FLAGS", ["-isystem", str(folder / "include"), *flags])
        monkeypatch.setattr(extension, "LINK_FLAGS", [f"-L{folder / 'lib'}"])
        return extension.build_key("swiglu")

    assert key(Path("/here/torch")) == key(Path("/there/torch")) != key(Path("/here/torch"), "-DOTHER")


def test_a_second_build_compiles_nothing(fake_build: Path) -> None:
    first, second = list[str](), list[str]()
    library = extension.build("swiglu", progress=first.append)
    assert extension.build("swiglu", progress=second.append) == library
    assert len(first) == 2 * len(isa.VECTOR) + 2  # two kernel sources, the binding, the link
    assert second == []


def test_builders_at_the_same_time_build_once(fake_build: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: extension.build("swiglu_quant"), range(4)))
    log = (fake_build.parent / "log").read_text().splitlines()
    assert len(paths) == 1
    assert len(log) == len(isa.VECTOR) + 2


def test_a_failing_compiler_shows_its_message_and_leaves_nothing(
    tmp_path: Path, fake_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX")
    (fake_build / "swiglu.cpp").write_text("int broken = undeclared_name;\n")
    with pytest.raises(extension.CompileError, match=r"undeclared_name(.|\n)*CXX selects another"):
        extension.build("swiglu")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["swiglu.lock"]


def test_a_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(extension.CompileError, match=r"tried no-such-compiler.*install g"):
        extension.compiler()


@pytest.mark.parametrize("op", extension.ops())
def test_every_op_has_its_four_files(op: str) -> None:
    kernels = extension.SOURCE_DIR.parent
    assert (kernels / f"schema/{op}.py").exists()
    assert (kernels / f"cpu/{op}.py").exists()
    assert extension.kernel_sources(op)


def disassembly(op: str, name: str) -> str:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not here")
    folder = extension.build(op).parent
    objects = sorted(map(str, folder.glob(f"*.{name}.o")))
    return subprocess.run(["objdump", "-d", "-C", *objects], capture_output=True, text=True, check=True).stdout


def functions(listing: str, name: str) -> str:
    """Keep the functions whose own namespace is the variant's."""
    blocks = re.split(r"\n(?=[0-9a-f]{16} <)", listing)
    return "\n".join(block for block in blocks if f"minimax_m2::{name}::" in block.partition("\n")[0])


@pytest.mark.parametrize("op", extension.ops())
@pytest.mark.parametrize(
    ("name", "own", "foreign"),
    [
        ("portable", "%xmm", "%[yz]mm"),
        ("avx2", "%ymm", "%zmm|%k[1-7]"),
        ("avx512", "%zmm", "vdpbf16ps|vcvtne"),
        ("avx512_bf16", "%zmm", "%tmm"),
        ("amx", "%tmm", "no higher one"),
    ],
)
def test_an_object_holds_its_own_instructions_and_no_higher_ones(op: str, name: str, own: str, foreign: str) -> None:
    if name not in {unit for _, unit in extension.units(op)}:
        pytest.skip(f"{op} has no {name} unit, or this is no x86-64")
    listing = disassembly(op, name)
    assert re.search(own, functions(listing, name)), f"{op}.{name} has no {own} in its kernels"
    assert not re.search(foreign, listing), f"{op}.{name} holds {foreign}"


@pytest.mark.parametrize("op", extension.ops())
def test_bf16_products_use_the_bf16_instruction(op: str) -> None:
    if "avx512_bf16" not in isa.COMPILED:
        pytest.skip("avx512_bf16 is compiled on x86-64 only")
    source = "".join(path.read_text() for path in extension.kernel_sources(op))
    assert ("vdpbf16ps" in disassembly(op, "avx512_bf16")) == bool(re.search(r"\bdot\(", source))
