"""What a run over many files reads: lanes where they are named, and with `-m gpu` files with tests of a GPU alone."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SUITES = Path(__file__).resolve().parents[1]
CONFTEST = runpy.run_path(str(SUITES / "conftest.py"))


def left_out(place: str, *asked: str, marker: str = "") -> bool:
    config: Any = SimpleNamespace(
        option=SimpleNamespace(markexpr=marker), args=asked, invocation_params=SimpleNamespace(dir=SUITES.parent)
    )
    return CONFTEST["pytest_ignore_collect"](SUITES / place, config) is True


@pytest.mark.parametrize(
    "place, marker, expected",
    [
        ("kernels/test_gpu_capture.py", "gpu", False),
        ("test_conformance.py", "gpu", False),
        ("test_conformance_relations.py", "gpu", False),
        ("bench_linear.py", "gpu", False),
        ("kernels", "gpu", False),
        ("test_linear.py", "gpu", True),
        ("test_linear.py", "gpu and not nightly", False),
        ("test_linear.py", "", False),
    ],
)
def test_a_gpu_run_reads_files_with_tests_of_a_gpu(place: str, marker: str, expected: bool) -> None:
    assert left_out(place, "suites", marker=marker) is expected


def test_a_lane_is_read_where_it_is_named() -> None:
    assert left_out("parallel/test_ranks.py", "suites")
    assert not left_out("parallel/test_ranks.py", "suites", "suites/parallel", marker="gpu")
    assert left_out("parallel/test_splits.py", "suites/parallel", marker="gpu")


def test_a_test_of_a_gpu_that_a_gpu_run_would_not_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "test_hidden.py"
    file.write_text("MARK = getattr(pytest.mark, 'gpu')\n")
    item: Any = SimpleNamespace(path=file, get_closest_marker=lambda name: name == "gpu")
    with pytest.raises(pytest.UsageError, match=r"test_hidden.py: `-m gpu` reads files that hold one of mark\.gpu"):
        CONFTEST["pytest_collection_modifyitems"]([item])
    file.write_text("MARK = pytest.mark.gpu\n")
    CONFTEST["pytest_collection_modifyitems"]([item])
