"""Causes are named by the rule that fired; a third of the simulated ones was kept away from the rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.history.causes import Cause, Evidence, classified
from minimax_m2.harness.history.replay import causes_right

CAUSES = Path(__file__).parent / "causes"


def test_causes_that_the_rules_never_saw_are_named() -> None:
    right, count = causes_right(CAUSES / "held_out" / "causes.json")
    assert count == 34
    assert right / count >= 0.9


@pytest.mark.nightly
def test_causes_that_the_rules_were_made_for_are_named() -> None:
    right, count = causes_right(CAUSES / "causes.json")
    assert count == 66
    assert right / count >= 0.9


SLOWER = Evidence(series=4, effect=0.1, changed={}, paired=(4, 4), hashed=4, known=4, providers=("ours",))


@pytest.mark.parametrize(
    "change, cause, told",
    [
        ({}, Cause.CODE, "4 of 4 pairs with the accepted build moved, and their sources changed"),
        ({"is_wrong": True}, Cause.WRONG, "no history is needed"),
        ({"changed": {"method": ("a", "b")}}, Cause.METHOD, "method a to b"),
        ({"is_canary": True, "canary": -0.2}, Cause.HARDWARE, "-18.1 %"),
        ({"providers": ("plain",), "paired": (0, 0)}, Cause.REFERENCE, "only plain moved"),
        (
            {"hashed": 0, "paired": (0, 4), "changed": {"torch": ("2.13", "2.14")}},
            Cause.ENVIRONMENT,
            "torch 2.13 to 2.14",
        ),
        ({"hashed": 0, "paired": (0, 4), "changed": {"host": ("a", "b")}}, Cause.HARDWARE, "host a to b"),
        ({"hashed": 0, "paired": (0, 0), "canary": -0.08}, Cause.HARDWARE, "the same night"),
        ({"paired": (0, 4)}, Cause.NOISE, "4 of 4 pairs with the accepted build stayed"),
        ({"paired": (0, 3)}, Cause.CODE, "the sources of 4 of 4 series"),
        ({"paired": (0, 4), "canary": -0.08}, Cause.HARDWARE, "the same night"),
        ({"hashed": 0}, Cause.NOISE, "the same sources"),
        ({"hashed": 0, "known": 0}, Cause.UNKNOWN, "not recorded"),
        ({"hashed": 0, "lane_share": 0.9}, Cause.UNKNOWN, "most of the lane"),
    ],
)
def test_the_first_rule_that_fires_is_printed(change: dict[str, object], cause: Cause, told: str) -> None:
    found = classified(replace(SLOWER, **change))  # type: ignore[arg-type]
    assert found.cause is cause
    assert told in found.rule
