"""The picture fits a screen, tells a wrong place by more than colour, and takes no markup from a run's text."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from minimax_m2.harness.drift.lockstep import ABSENT, Cell
from minimax_m2.harness.drift.picture import COLOURS, colour, picture
from minimax_m2.harness.drift.record import Asked, Drift
from minimax_m2.harness.drift.running import Found

STEPS = ("input_norm", "qkv", "q_norm", "k_norm", "rope", "attention", "o_proj", "post_attention_norm", "router_gemm")


def run_of(cells: list[Cell], *, layers: int, candidate: str = "mine", runs: tuple[Found, ...] = ()) -> Drift:
    return Drift(
        run="r", model="m", layers=layers, tokens=8, tokens_id="0", dtype="bfloat16", candidate=candidate,
        reference="fp64", asked=Asked(candidate=candidate), cells=tuple(cells), runs=runs,
    )  # fmt: skip


def grid(layers: int, *, wrong: tuple[int, str] = (-9, "")) -> list[Cell]:
    """A right run, but for one place."""
    places = [(layer, step) for layer in range(layers) for step in (*STEPS, "routing", "swiglu", "experts")]
    right = [Cell(layer=l, step=s, op="linear", phase="prefill", outcome="pass", used=0.5) for l, s in places]
    return [
        replace(cell, outcome="wrong", used=41.0, explanation="y < x") if cell.place == wrong else cell
        for cell in right
    ]


def test_sixty_two_layers_by_twelve_steps_fit_a_screen() -> None:
    root = ET.fromstring(picture(run_of(grid(62), layers=62)))
    assert int(root.attrib["height"]) <= 1000
    assert int(root.attrib["width"]) <= 1280
    assert sum("title" in child.tag for child in root.iter()) == 62 * 12


def test_a_wrong_place_is_framed_numbered_and_told() -> None:
    text = picture(run_of(grid(62, wrong=(17, "experts")), layers=62))
    assert "layer 17, experts is 41 x its budget" in text
    assert text.count('stroke-width="2"') == 1
    assert ">41</text>" in text
    assert "y &lt; x" in text


def test_text_of_a_run_is_escaped_and_nothing_is_fetched() -> None:
    text = picture(run_of(grid(2), layers=2, candidate="<script>alert(1)</script>"))
    assert "<script" not in text
    assert set(re.findall(r"https?://[^\s\"]+", text)) == {"http://www.w3.org/2000/svg"}
    ET.fromstring(text)


def test_what_is_no_step_of_the_candidate_is_no_pass() -> None:
    absent = [Cell(layer=0, step="attention", op="attention", phase="prefill", outcome=ABSENT)]
    assert "#eeeeee" in picture(run_of(absent, layers=1)).split("not its step")[0]


def test_a_curve_that_leaves_its_band_is_drawn_so() -> None:
    found = Found(mode="pinned", curve=(0.0, 0.001, 0.5), low=(0.0, 0.0005, 0.0005), high=(0.0, 0.002, 0.002), leaves=2,
                  agreement=1.0, divergence=0.0)  # fmt: skip
    text = picture(run_of(grid(2), layers=2, runs=(found,)))
    assert text.count("<circle") == 2
    assert 'stroke="#d62728" stroke-width="2"' in text


@pytest.mark.parametrize("share, shade", [(0.0, 0), (1e-9, 0), (1.0, -1), (math.inf, -1)])
def test_colours_rise_with_the_share(share: float, shade: int) -> None:
    assert colour(share) == COLOURS[shade]
