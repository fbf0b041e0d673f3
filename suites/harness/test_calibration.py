"""Predicted and observed errors agree: mean z^2 of the emulated kernel, per op, dtype and weight scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.calibration import Figure, figures, page, weight_scale
from minimax_m2.harness.op import all_ops, find_op

# Where bfloat16 or float16 roundings dominate, and what float32 may have at most.
LEAST, MOST = 0.8, 1.25
SIXTEEN_BITS = ("bfloat16", "float16")
# Below this many elements the mean itself strays: its standard deviation is 0.9 / sqrt(elements) for uniform noise.
ENOUGH = 1000
PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"


def miscalibrated(found: list[Figure]) -> list[Figure]:
    return [
        f
        for f in found
        if f.elements >= ENOUGH and (f.mean_z2 > MOST or (f.dtype in SIXTEEN_BITS and f.mean_z2 < LEAST))
    ]


def test_the_budget_predicts_the_error_of_an_emulated_kernel(op_name: str) -> None:
    assert miscalibrated(figures(find_op(op_name))) == []


@pytest.mark.parametrize("dtype, mean_z2", [("bfloat16", 0.79), ("float16", 1.26), ("float32", 1.26)])
def test_a_miscalibrated_figure_is_told(dtype: str, mean_z2: float) -> None:
    good = Figure("linear", "y", dtype, "0.02", 1.0, ENOUGH)
    assert miscalibrated([good]) == []
    assert miscalibrated([replace(good, mean_z2=mean_z2)]) != []


def test_the_scales_of_weights_are_found() -> None:
    scaled = {name: weight_scale(op) for name, op in all_ops().items()}
    assert scaled["experts"] == "weights"
    assert scaled["linear"] == "weight_milli"
    assert scaled["rope"] is None


def test_the_page_is_published_for_every_op() -> None:
    published = PAGE.read_text()
    silent = [name for name in all_ops() if figures(find_op(name), 24) and f"| {name} |" not in published]
    assert silent == [], "run python -m minimax_m2.harness.calibration"


def test_a_page_says_what_kind_its_numbers_are() -> None:
    text = page([Figure("linear", "y", "bfloat16", "0.02", 1.0, ENOUGH)], cases=7)
    assert "*simulated* (seeds 0 to 6" in text
    assert "| linear | y | bfloat16 | 0.02 | 1.000 | 1000 |" in text
