"""The plugin's account of what ran: lost cells, silent ops and unlisted ops are named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from minimax_m2.harness import pytest_plugin
from minimax_m2.harness.matrix import expected_dir, machine_kind, must_execute
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.pytest_plugin import EXECUTED, FILES, missing

STEMS = {op.stem or op.name for op in all_ops().values()}


def everything() -> Any:
    """A session in which every expected cell and every op's tests ran."""
    folder = expected_dir()
    assert folder is not None
    ran = {cell.id for cell in must_execute(folder, "cpu", machine_kind("cpu"))}
    stash: dict[object, set[str]] = {EXECUTED: ran, FILES: {f"test_{stem}.py" for stem in STEMS}}
    return SimpleNamespace(stash=stash)


def said(config: Any) -> list[str]:
    # Ops that are being added may lack their file of cells; suites/test_layout.py asks for it.
    return [line for line in missing(config) if "is missing" not in line]


def test_nothing_is_missing_where_everything_ran() -> None:
    assert said(everything()) == []


def test_a_cell_that_did_not_run_is_named() -> None:
    config = everything()
    cell = min(config.stash[EXECUTED])
    config.stash[EXECUTED].remove(cell)
    assert said(config) == [f"cell {cell}: not executed"]


def test_an_op_without_tests_is_named() -> None:
    config = everything()
    config.stash[FILES].remove("test_linear.py")
    assert said(config) == ["suites/test_linear.py: no test executed"]


def test_a_wheel_without_expected_cells_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_plugin, "expected_dir", lambda: None)
    assert missing(everything()) == ["suites/expected is not here: run from a checkout"]
