"""Events are told once, by what their series share; they can be accepted, and other programs can read them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from minimax_m2.harness.history.accepted import accept, numbered, quoted, reasons
from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event, events_of, wrong_tonight
from minimax_m2.harness.history.formats import written
from minimax_m2.harness.history.pages import event_row, next_command
from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.simulated import Change, World, measured_again, simulated
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.history.tonight import find_event, is_regression, lanes_of
from minimax_m2.harness.record import Record, Timing

HOSTILE = 'a|b`c`<b>\x00"]]>\x7f'


def lane(*changes: Change, seed: int = 2) -> tuple[Panel, list[Event]]:
    world = World(seed=seed, nights=36, changes=changes)
    panel = simulated(world)
    found = events_of(panel, rerun=measured_again(world, panel), first=24)
    numbered([(panel, found)], Path("nowhere"))
    return panel, found


EXPERTS = Change(night=30, effect=0.12, ops=["experts"], providers=["ours"], hashes=True)


@pytest.fixture(scope="module")
def told() -> tuple[Panel, list[Event]]:
    return lane(EXPERTS)


@pytest.mark.parametrize(
    "change, factor, series",
    [
        (EXPERTS, "experts of ours", 2),
        (replace(EXPERTS, shapes=["decode"]), "experts/cpu/ours/decode", 1),
        (replace(EXPERTS, ops=[]), "ours", 16),
        (replace(EXPERTS, ops=[], providers=[]), "all", 32),
        (replace(EXPERTS, providers=[]), "experts of all", 4),
    ],
)
def test_series_that_step_together_are_one_event(change: Change, factor: str, series: int) -> None:
    panel, found = lane(change)
    largest = max(found, key=lambda event: len(event.rows))
    assert (largest.factor, len(largest.rows), largest.night) == (factor, series, 30)
    assert (largest.good, largest.bad) == (panel.nights[29].commit, panel.nights[30].commit)


def test_what_steps_on_different_nights_is_two_events() -> None:
    _, found = lane(EXPERTS, replace(EXPERTS, night=25, ops=["linear"]))
    assert {event.factor for event in found} >= {"experts of ours", "linear of ours"}


def test_slower_and_faster_are_two_events() -> None:
    _, found = lane(EXPERTS, replace(EXPERTS, ops=["linear"], effect=-0.12))
    assert [event.is_slower for event in sorted(found, key=lambda event: event.factor)] == [True, False]


def test_slower_by_our_own_code_is_to_act_on_and_faster_is_not(told: tuple[Panel, list[Event]]) -> None:
    (event,) = told[1]
    assert event.ruling.cause is Cause.CODE
    assert is_regression(event)
    _, (faster,) = lane(replace(EXPERTS, effect=-0.12))
    assert not is_regression(faster)


def test_what_later_code_makes_up_for_is_to_act_on_no_more() -> None:
    slower, faster = replace(EXPERTS, night=26), replace(EXPERTS, night=33, effect=-0.13)
    panel, found = lane(slower, faster)
    first, second = sorted(found, key=lambda event: event.night)
    assert (first.is_slower, first.made_up, is_regression(first)) == (True, second, False)
    assert event_row(panel, 0, first)["made_up"] == second.number


@pytest.mark.parametrize(
    "later",
    [
        pytest.param({"effect": -0.08}, id="less than it lost"),
        pytest.param({"effect": -0.13, "shapes": ["decode"]}, id="one of two shapes"),
        pytest.param({"effect": -0.13, "ops": ["linear"]}, id="another op"),
        pytest.param({"effect": -0.13, "hashes": False}, id="no code of ours"),
    ],
)
def test_what_is_not_made_up_for_stays_to_act_on(later: dict[str, Any]) -> None:
    _, found = lane(replace(EXPERTS, night=26), replace(EXPERTS, night=33, **later))
    first = min(found, key=lambda event: event.night)
    assert len(found) > 1
    assert (first.is_slower, first.made_up, is_regression(first)) == (True, None, True)


def test_a_wrong_result_needs_no_history() -> None:
    panel = simulated(World(seed=1, nights=1))
    panel.wrong[4, 0], panel.share[4, 0] = "y at [0]: actual 1", 7.0
    (event,) = wrong_tonight(panel)
    assert event.ruling.cause is Cause.WRONG
    assert is_regression(event)
    assert events_of(panel)[-1].effect == 7.0


def test_a_case_that_is_only_judged_is_told_where_it_is_wrong(record: Record, tmp_path: Path) -> None:
    wrong = replace(
        record, provider="mine", timing=None, outcome="wrong", utilisation=3.0, evidence=["left out expert 7"]
    )
    (tmp_path / "run.jsonl").write_text(f"{wrong.json}\n")
    store = Store(tmp_path / "store")
    store.add([tmp_path / "run.jsonl"])
    ((panel, (event,)),) = lanes_of(store, accepted=tmp_path)
    assert (event.ruling.cause, event.text, event.effect) == (Cause.WRONG, "left out expert 7", 3.0)
    assert is_regression(event)
    assert next_command(panel, event) == f"m2check repro {record.case_id} --provider mine.py"
    right = replace(wrong, run="20260102T000000.000000Z", outcome="pass", utilisation=0.3, evidence=[])
    (tmp_path / "next.jsonl").write_text(f"{right.json}\n")
    store.add([tmp_path / "next.jsonl"])
    ((_, mended),) = lanes_of(store, accepted=tmp_path)
    assert mended == []


def test_an_accepted_event_is_told_no_more_whatever_its_number(told: tuple[Panel, list[Event]], tmp_path: Path) -> None:
    panel, (event,) = told
    path = accept(event, panel, f"  triton 3.9\n{HOSTILE}", folder=tmp_path)
    assert tomllib.loads(path.read_text())["cause"] == "code"
    again, found = lane(EXPERTS)
    numbered([(again, found)], tmp_path)
    assert found[0].accepted.startswith("triton 3.9 a|b")
    assert not is_regression(found[0])


@pytest.mark.parametrize("reason", ["", " \n ", "x" * 501])
def test_a_reason_must_be_given_and_short(told: tuple[Panel, list[Event]], tmp_path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match="--reason has"):
        accept(told[1][0], told[0], reason, folder=tmp_path)


def test_nobody_can_accept_a_wrong_result(tmp_path: Path) -> None:
    panel = simulated(World(seed=1, nights=1))
    panel.wrong[4, 0] = "y at [0]: actual 1"
    with pytest.raises(ValueError, match="wrong result"):
        accept(wrong_tonight(panel)[0], panel, "I like it", folder=tmp_path)


@pytest.mark.parametrize(
    "text, fault", [("key = 3", "lacks key"), ("key =", "no TOML"), ('key = "a"', "lacks key or reason")]
)
def test_what_is_no_acceptance_is_an_error_with_its_file(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.toml.*{fault}"):
        reasons(tmp_path)


def test_any_text_survives_toml() -> None:
    text = "".join(map(chr, range(1, 0x250))) + "\U0001f600"
    assert tomllib.loads(f"a = {quoted(text)}")["a"] == text


def test_an_unknown_number_is_refused(told: tuple[Panel, list[Event]]) -> None:
    with pytest.raises(KeyError, match="there are 1 to 1"):
        find_event([told], 7)


@pytest.fixture
def hostile(told: tuple[Panel, list[Event]]) -> tuple[Panel, list[Event]]:
    panel, (event,) = told
    return panel, [replace(event, factor=HOSTILE, text=HOSTILE)]


def test_hostile_names_stay_inside_their_cell_of_markdown(hostile: tuple[Panel, list[Event]]) -> None:
    row = written([hostile], "markdown").splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 8
    assert "<b>" not in row.replace("\\<", "").replace("\\>", "")


def test_junit_fails_what_must_be_acted_on(hostile: tuple[Panel, list[Event]]) -> None:
    suite = ElementTree.fromstring(written([hostile], "junit"))
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite[0][0].tag == "failure"


def test_ctrf_and_json_count_the_same(hostile: tuple[Panel, list[Event]]) -> None:
    summary = json.loads(written([hostile], "ctrf"))["results"]["summary"]
    assert (summary["tests"], summary["failed"]) == (1, 1)
    (row,) = json.loads(written([hostile], "json"))
    assert row["regression"]


def m2check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minimax_m2.harness.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def nights(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twenty nights of one case whose kernel is slower from the fifteenth on."""
    folder, lines = tmp_path_factory.mktemp("nights"), []
    assert record.timing is not None
    for day in range(1, 21):
        slower = 1.2 if day >= 15 else 1.0
        timing: Timing = replace(record.timing, median_us=41.8 * slower * (1 + 0.004 * (day % 3 - 1)))
        lines.append(
            replace(
                record, run=f"202601{day:02}T020000.000000Z", provider="ours", timing=timing,
                machine=record.machine | {"commit": f"{day:012x}"},
                code=record.code | {"kernel": f"k{slower}", "height": 100 + day},
            ).json + "\n"
        )  # fmt: skip
    (folder / "nights.jsonl").write_text("".join(lines))
    assert m2check(folder, "nightly", "add", "nights.jsonl").returncode == 0
    return folder


def test_a_stranger_sees_what_moved_and_what_to_paste(nights: Path) -> None:
    done = m2check(nights, "events")
    assert done.returncode == 1, done.stderr
    verdict, evidence, command = done.stderr.strip().splitlines()[-3:]
    assert "1 of 1 events to act on" in verdict
    assert "sources" in evidence
    assert command == "m2check bisect commit --op routing --metric latency --good 00000000000e --bad 00000000000f"


def test_an_acceptance_ends_the_alarm_and_the_page_is_built(nights: Path) -> None:
    refused = m2check(nights, "event", "1", "accept")
    assert refused.returncode == 2
    assert "--reason" in refused.stderr
    assert m2check(nights, "event", "1", "accept", "--reason", "a safer kernel").returncode == 0
    assert m2check(nights, "events", "--format", "junit").returncode == 0
    built = m2check(nights, "dash", "build", "--out", "page.html")
    assert built.returncode == 0, built.stderr
    assert (nights / "page.html").stat().st_size < 200_000


@pytest.mark.parametrize(
    "words, code, told",
    [
        (("nightly", "add", "nowhere.jsonl"), 2, "'nowhere.jsonl' does not exist"),
        (("events",), 5, "no night is recorded"),
        (("events", "--since", "soon"), 2, "is no number of days"),
        (("dash", "serve", "--page", "none.html"), 2, "m2check dash build"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    done = m2check(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
