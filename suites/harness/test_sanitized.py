"""Every CPU kernel is watched by ASan and UBSan: what ends a process is told, what was done is not done again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import sanitized
from minimax_m2.harness.arena import LARGEST, span
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provenance import kernel_hash
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.sanitized import Held, demand_instrumented, judged, main, read, tight, told

ROOT = Path(__file__).resolve().parents[2]
OVERFLOW = """
==71==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60d0 at pc 0x7f1 bp 0x7ff sp 0x7fe
READ of size 64 at 0x60d0 thread T0
    #0 0x7f10 in _mm512_loadu_ps(void const*) /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512fintrin.h:6438
    #1 0x7f11 in minimax_m2::avx512::load(float const*) /tree/kernels/cpu/vector_avx512_float.h:85
    #2 0x7f12 in minimax_m2::avx512::swiglu(minimax_m2::SwigluArgs const&) /tree/kernels/cpu/swiglu.cpp:24
"""
SHIFT = """
/tree/kernels/cpu/scalar.h:31:12: runtime error: shift exponent 40 is too large for 32-bit type 'int'
    #0 0x7f10 in minimax_m2::portable::round_to(float*, float) /tree/kernels/cpu/scalar.h:31
"""


def line(op: str, variant: str, **changes: object) -> Held:
    kernel = kernel_hash(op, "ours", "cpu")
    known = {"cases": sanitized.CASES, "calls": 48, "seconds": 1.0, "finding": "", "kernel": kernel}
    return Held(op=op, variant=variant, **{**known, **changes})  # type: ignore[arg-type]


def written(path: Path, lines: list[Held]) -> Path:
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in lines))
    return path


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            OVERFLOW,
            "ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60d0 at pc 0x7f1 bp 0x7ff sp 0x7fe in "
            "minimax_m2::avx512::load(float const*) kernels/cpu/vector_avx512_float.h:85",
        ),
        (
            SHIFT,
            "kernels/cpu/scalar.h:31:12: runtime error: shift exponent 40 is too large for 32-bit type 'int' in "
            "minimax_m2::portable::round_to(float*, float) kernels/cpu/scalar.h:31",
        ),
        ("Traceback\n  File\nMemoryError: 9 GB\n", "MemoryError: 9 GB"),
        ("", ""),
    ],
)
def test_a_report_is_told_with_its_place_in_our_sources(report: str, expected: str) -> None:
    assert told(report) == expected


class Packed(NamedTuple):
    weight: Tensor
    scale: Tensor | None


def test_a_tight_copy_ends_where_its_allocation_does() -> None:
    whole = torch.arange(40.0).view(5, 8)
    strided = whole[1:4, 2:5]
    copy = tight(strided)
    assert torch.equal(copy, strided)
    assert copy.stride() == strided.stride()
    assert copy.untyped_storage().nbytes() == span(strided) < whole.nbytes
    packed = tight(Packed(strided, None))
    assert isinstance(packed, Packed)
    assert packed.weight.untyped_storage().nbytes() == span(strided)
    large = torch.empty(LARGEST + 1, dtype=torch.uint8)
    assert tight(large).data_ptr() == large.data_ptr()
    assert tight(torch.empty(0, 4)).shape == (0, 4)


def test_of_the_same_kernels_and_cases_the_last_line_counts(tmp_path: Path) -> None:
    old, new, other = line("rope", "avx2", finding="x"), line("rope", "avx2"), line("rope", "avx2", kernel="before")
    assert read(written(tmp_path / "r.jsonl", [old, other, new])) == [new, other]
    assert read(tmp_path / "none.jsonl") == []


def runs(monkeypatch: pytest.MonkeyPatch, finding: str = "") -> list[tuple[str, list[str]]]:
    """What is judged from now on, which gives ``finding``; nothing is built."""
    asked: list[tuple[str, list[str]]] = []

    def held(op: str, variants: list[str], count: int) -> list[Held]:
        asked.append((op, variants))
        return [line(op, variant, cases=count, finding=finding) for variant in variants]

    monkeypatch.setattr(sanitized, "held", held)
    monkeypatch.setattr(sanitized.cpu_extension(), "build", lambda op: Path(op))
    monkeypatch.setenv(sanitized.ASKED, "")
    return asked


def test_a_run_goes_on_where_its_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *left = ours().variants_of("rope")
    record = written(tmp_path / "r.jsonl", [line("rope", first), line("rope", left[0], kernel="before")])
    asked = runs(monkeypatch)
    assert main([str(record), "--op", "rope"]) == 0
    assert asked == [("rope", left)]
    assert main([str(record), "--op", "rope"]) == 0
    assert asked[1:] == [("rope", [])]


def test_a_finding_is_no_clean_run_now_or_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "r.jsonl"
    asked = runs(monkeypatch, "heap-buffer-overflow")
    assert main([str(record), "--op", "rope"]) == 1
    assert main([str(record), "--op", "rope"]) == 1
    assert asked[1] == ("rope", [])


def test_a_process_without_sanitizers_judges_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"rope would run without a sanitizer: start with ci/sanitize\.sh"):
        demand_instrumented("rope")


def test_an_op_is_judged_and_called_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitized, "demand_instrumented", lambda op: None)
    (found,) = judged(find_op("rope"), ["portable"], 2)
    assert (found.calls, found.finding) == (4, "")


def test_the_record_is_clean_and_holds_every_op_on_every_instruction_set() -> None:
    path = max((ROOT / "ci/results").glob("sanitized-*.jsonl"))
    found = {(one.op, one.variant): one for one in read(path)}
    vector = ("portable", "avx2", "avx512", "avx512_bf16")
    assert {(op, variant) for op in all_ops() for variant in vector} <= set(found)
    assert {op for op, variant in found if variant == "amx"} == {"experts", "linear"}
    assert [one for one in found.values() if one.finding or not one.calls] == []


@pytest.fixture
def tree_with(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """A copy of the kernels in which one line of a file is another, and the rest of the tree beside it."""

    def make(name: str, line: str, other: str) -> Path:
        root = tmp_path / "minimax_m2"
        shutil.copytree(ROOT / "kernels", root / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
        for room in ("harness", "reference"):
            (root / room).symlink_to(ROOT / room)
        source = root / "kernels/cpu" / name
        assert source.read_text().count(line) == 1
        source.write_text(source.read_text().replace(line, other))
        return tmp_path

    return make


@pytest.mark.nightly
def test_a_tail_that_reads_a_whole_vector_is_found_on_every_instruction_set(
    tree_with: Callable[[str, str, str], Path],
) -> None:
    # What is read too much is not stored, so no number is wrong and the arena sees nothing.
    tree = tree_with("swiglu.cpp", "* load(up + i, n...)", "* load(up + i)")
    ended = subprocess.run(
        [sys.executable, "-m", "minimax_m2.harness.sanitized", "r.jsonl", "--op", "swiglu", "--cases", "12"],
        env={**os.environ, "PYTHONPATH": str(tree), "MINIMAX_M2_CACHE": str(tree / "cache")},
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    found = read(tree / "r.jsonl")
    assert [one.variant for one in found] == list(ours().variants_of("swiglu"))
    assert all("AddressSanitizer" in one.finding and "kernels/cpu/" in one.finding for one in found)
