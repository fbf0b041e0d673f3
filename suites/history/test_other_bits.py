"""Outputs that changed to the bit are told, once, where neither time nor error tells of the change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event, events_of
from minimax_m2.harness.history.other_bits import STEADY, UNSTEADY, bit_events
from minimax_m2.harness.history.pages import event_row
from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.simulated import World, simulated
from minimax_m2.harness.history.tonight import is_regression
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain, wide

NIGHTS, NIGHT = 20, 12


@pytest.fixture
def panel() -> Panel:
    found = simulated(World(seed=4, nights=NIGHTS))
    found.bits = np.full(found.us.shape, "aaaa", dtype=object)
    return found


def rows_of(panel: Panel, op: str, provider: str = "ours") -> list[int]:
    return [row for row, one in enumerate(panel.series) if (one.op, one.provider) == (op, provider)]


def test_steady_bits_are_no_event(panel: Panel) -> None:
    assert bit_events(panel, []) == []


def test_other_bits_by_other_sources_are_our_codes(panel: Panel) -> None:
    rows = rows_of(panel, "experts")
    panel.bits[rows, NIGHT:] = "bbbb"
    panel.kernels[rows, NIGHT:] = "new"
    (event,) = bit_events(panel, events_of(panel))
    assert (event.rows, event.night, event.told, event.factor) == (rows, NIGHT, NIGHT + 1, "experts of ours")
    assert event.ruling.cause is Cause.CODE
    assert (event.good, event.bad) == (panel.nights[NIGHT - 1].commit, panel.nights[NIGHT].commit)
    assert not is_regression(event)
    assert event_row(panel, 0, event)["command"].startswith("m2check run --op experts --no-times --with ours")


def test_other_bits_by_other_software_are_the_environments(panel: Panel) -> None:
    panel.bits[:, NIGHT:] = "bbbb"
    panel.nights[NIGHT:] = [replace(one, context=one.context | {"torch": "9"}) for one in panel.nights[NIGHT:]]
    (event,) = bit_events(panel, [])
    assert (event.factor, event.ruling.cause) == ("all", Cause.ENVIRONMENT)


def test_other_bits_by_nothing_are_a_kernel_that_is_not_deterministic(panel: Panel) -> None:
    (row, *_) = rows_of(panel, "routing")
    panel.bits[row, NIGHT] = "bbbb"
    (event,) = bit_events(panel, [])
    assert (event.ruling.cause, event.ruling.rule) == (Cause.UNKNOWN, UNSTEADY)
    assert event.text == f"outputs changed to the bit, and changed back: {UNSTEADY}"


def test_what_was_never_steady_is_told_by_its_own_card_and_not_every_night(panel: Panel) -> None:
    panel.bits[0] = [f"{night:04x}" for night in range(NIGHTS)]
    panel.bits[1, ::2] = "bbbb"
    panel.bits[2, STEADY - 1 :] = "bbbb"
    assert bit_events(panel, []) == []


def test_one_night_is_a_suspicion_and_two_are_an_event(panel: Panel) -> None:
    panel.bits[0, NIGHTS - 1 :] = "bbbb"
    assert bit_events(panel, []) == []
    panel.bits[0, NIGHTS - 2 :] = "bbbb"
    assert [event.night for event in bit_events(panel, [])] == [NIGHTS - 2]


def test_nights_without_bits_break_no_promise(panel: Panel) -> None:
    panel.bits[:, 3:9] = ""
    assert bit_events(panel, []) == []
    panel.bits[0, NIGHT:] = "bbbb"
    assert len(bit_events(panel, [])) == 1


@pytest.mark.parametrize("apart, events", [(0, 0), (1, 0), (5, 1)])
def test_a_change_that_a_time_tells_is_told_once(panel: Panel, apart: int, events: int) -> None:
    panel.bits[0, NIGHT:] = "bbbb"
    (alone,) = bit_events(panel, [])
    told = Event(
        panel.lane, "time", NIGHT - apart, "", [], alone.ruling, alone.evidence, told=NIGHT, rows=[0, 3]
    )  # fmt: skip
    assert len(bit_events(panel, [told])) == events


def test_verdicts_bear_the_bits_of_what_was_returned() -> None:
    case = find_op("rms_norm").case(T=3, dtype="float32")
    one, again, other = judge(case, plain()), judge(case, plain()), judge(case, wide())
    assert one.passed
    assert other.passed
    assert one.bits == again.bits != other.bits
    assert len(one.bits) == 16
