"""Functions taken out of an engine's file run as they stand there, without what the file imports."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from minimax_m2.harness.providers.excerpt import definitions, excerpt

FILE = '''
import an_engine_that_is_not_here
from an_engine_that_is_not_here import platform


def twice(function):
    return lambda x: function(function(x))


@twice
def added(x: "an_engine_that_is_not_here.Tensor"):
    """Add what the platform says."""
    return x + platform.step()
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "engine.py"
    path.write_text(FILE)
    return path


def test_functions_run_beside_what_stands_for_their_module(file: Path) -> None:
    class Platform:
        @staticmethod
        def step() -> int:
            return 3

    module = excerpt({file: ("twice", "added")}, head="import math", given={"platform": Platform})
    assert module.added(1) == 7
    assert module.math.pi > 3


def test_their_text_is_the_files_word_for_word(file: Path) -> None:
    (text,) = definitions(file, ["added"])
    assert text.startswith("@twice\ndef added")
    assert text in FILE


def test_their_source_can_be_read_as_triton_reads_it(file: Path) -> None:
    module = excerpt({file: ("twice",)}, head="", given={})
    assert inspect.getsource(module.twice).strip() in FILE


def test_a_function_that_is_gone_is_named(file: Path) -> None:
    with pytest.raises(LookupError, match="defines no fused_moe_kernel; is it of another version"):
        definitions(file, ["fused_moe_kernel"])
