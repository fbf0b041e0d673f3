"""The page: one small file that fetches nothing, reads as it was packed, and takes no name for markup."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimax_m2.harness.history.accepted import numbered
from minimax_m2.harness.history.causes import Cause, Ruling
from minimax_m2.harness.history.events import Event, events_of
from minimax_m2.harness.history.packing import MISSING, planes, unpacked
from minimax_m2.harness.history.pages import FOLDER, Extras, next_command, page
from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.simulated import OPS, Change, World, measured_again, simulated

HOSTILE = "</script><img src=x onerror=alert(1)>"
COMMIT = Change(night=30, effect=0.12, ops=["experts"], providers=["ours"], hashes=True)


def lane(world: World) -> tuple[Panel, list[Event]]:
    panel = simulated(world)
    return panel, events_of(panel, rerun=measured_again(world, panel), first=world.nights - 16)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Panel, list[Event]]:
    """A lane whose experts are slower by our code, with one wrong result, and hostile names."""
    panel, found = lane(World(seed=2, nights=40, changes=[COMMIT]))
    panel.series[3] = replace(panel.series[3], op=HOSTILE)
    panel.nights[39] = replace(panel.nights[39], commit=HOSTILE, context=panel.nights[39].context | {"host": HOSTILE})
    panel.samples = {row: (40.0, 41.5, 39.8, 44.0) for row in range(len(panel.series))}
    for event in found:
        event.text = HOSTILE
    numbered([(panel, found)], tmp_path_factory.mktemp("accepted"))
    return panel, found


@pytest.fixture(scope="module")
def text(told: tuple[Panel, list[Event]]) -> str:
    return page([told], Extras(simulated=True, selftest={"false events a month": HOSTILE}))


def data(text: str) -> tuple[dict[str, Any], bytes]:
    found = re.search(r'id="nights">([^<]*)<', text)
    assert found is not None
    return unpacked(found[1])


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no night is recorded"):
        page([])


def test_values_read_back_as_they_were_packed() -> None:
    values = np.array([[0.0, 0.001, -0.0234, 1.5, np.nan, -30.0]])
    raw = np.frombuffer(planes(values), dtype=np.uint8).astype(np.int32)
    folded = raw[:6] | raw[6:] << 8
    assert [int(v >> 1 ^ -(v & 1)) for v in folded] == [0, 1, -23, 1500, MISSING, -30000]


def test_a_page_holds_no_address_and_no_name_as_markup(text: str) -> None:
    assert HOSTILE not in text
    own = text.replace((FOLDER / "uPlot.iife.min.js").read_text(), "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\bsrc=|@import|url\(", own)
    about, _ = data(text)
    assert about["lanes"][0]["series"][3][1] == HOSTILE


def test_an_event_bears_its_cause_its_rule_and_the_command_to_paste(text: str) -> None:
    about, _ = data(text)
    (event,) = [event for event in about["events"] if event["what"] == "experts of ours"]
    assert event["cause"] == "code"
    assert "sources changed" in event["rule"]
    ends = f"--good {event['good']} --bad {event['bad']}"
    assert event["command"] == f"m2check bisect commit --op experts --metric latency {ends}"


@pytest.mark.parametrize("cause", [Cause.WRONG, Cause.CODE, Cause.NOISE])
@pytest.mark.parametrize("name", ["a; rm -rf ~", "$(id)", "`id`"])
def test_a_pasted_command_runs_nothing_that_a_record_named(
    told: tuple[Panel, list[Event]], name: str, cause: Cause
) -> None:
    panel, (event,) = told
    hostile = [replace(one, op=name, provider=name, variant=name, case_id=name) for one in panel.series]
    command = next_command(replace(panel, series=hostile), replace(event, ruling=Ruling(cause, "")))
    # To a shell each hostile name is one quoted word.
    assert shlex.split(command).count(name) >= 1
    assert name not in command.replace(shlex.quote(name), "").replace(shlex.quote(f"{name}.py"), "")


def test_a_branch_that_is_no_commit_is_not_pasted(told: tuple[Panel, list[Event]]) -> None:
    panel, (event,) = told
    assert "$(id)" not in next_command(panel, replace(event, bad="$(id)"))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_year_of_1200_series_is_below_a_megabyte_and_a_half() -> None:
    ops = [f"{op}.{copy}" for op in OPS for copy in range(38)]
    found = lane(World(seed=9, nights=365, spread=True, ops=ops))
    assert len(found[0].series) >= 1200
    assert len(page([found])) < 1_500_000


def test_forty_nights_are_small(text: str) -> None:
    assert len(text) < 200_000


class Opened:
    """The page in a browser, with all that it said and asked for."""

    def __init__(self, browser: Any, file: Path) -> None:
        context = browser.new_context(viewport={"width": 1360, "height": 1000})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.tab = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("html[data-ready=true]")


@pytest.fixture
def opened(browser: Any, text: str, tmp_path: Path) -> Iterator[Opened]:
    file = tmp_path / "nightly.html"
    file.write_text(text)
    found = Opened(browser, file)
    yield found
    # Whatever was clicked: nothing was fetched and nothing went wrong.
    assert found.asked == [file.as_uri()]
    assert found.said == []
    found.tab.context.close()


def test_it_opens_with_a_verdict(opened: Opened) -> None:
    assert opened.tab.inner_text("#verdict") == "Nothing is wrong, 1 event, 1 of them slower by our own code."
    assert "SIMULATED" in opened.tab.inner_text("#summary")
    assert HOSTILE in opened.tab.inner_text("#footer")


def test_the_command_is_copied(opened: Opened) -> None:
    opened.tab.click(".event button.copy >> nth=0")
    opened.tab.wait_for_selector(".toast")
    assert opened.tab.evaluate("navigator.clipboard.readText()") == opened.tab.inner_text(".event code >> nth=0")


def test_words_filter_events_and_series_in_a_tenth_of_a_second(opened: Opened) -> None:
    opened.tab.keyboard.press("2")
    opened.tab.wait_for_selector("#series")
    assert opened.tab.locator("#series tbody tr").count() == 32
    took = opened.tab.evaluate(
        "(() => { const start = performance.now(), field = document.getElementById('filter');"
        " field.value = 'attention ours'; field.dispatchEvent(new Event('input'));"
        " return performance.now() - start; })()"
    )
    assert opened.tab.locator("#series tbody tr").count() == 2
    # No timing decides in CI: a second is a page that hangs.
    assert took < 1000


def test_columns_sort_both_ways(opened: Opened) -> None:
    opened.tab.keyboard.press("2")
    opened.tab.click("#series th button >> text=time >> nth=0")
    first = opened.tab.inner_text("#series tbody tr >> nth=0")
    opened.tab.click("#series th button >> text=time >> nth=0")
    assert opened.tab.inner_text("#series tbody tr >> nth=0") != first
    assert opened.tab.locator("#series th[aria-sort=ascending]").count() == 1


def test_a_series_opens_with_its_lines_and_is_left_by_escape(opened: Opened) -> None:
    opened.tab.click(".event .what a >> nth=0")
    opened.tab.wait_for_selector(".plot canvas")
    assert opened.tab.locator(".plot canvas").count() == 5
    assert opened.tab.locator("#samples circle").count() == 4
    opened.tab.keyboard.press("j")
    opened.tab.wait_for_selector(".plot canvas")
    opened.tab.keyboard.press("Escape")
    opened.tab.wait_for_selector("#series")


@pytest.mark.parametrize("tab", ["Drift", "Trust", "Devices"])
def test_what_is_not_here_says_so(opened: Opened, tab: str) -> None:
    opened.tab.click(f"#tabs >> text={tab}")
    assert opened.tab.inner_text("#main").strip()


def test_hostile_names_are_shown_as_they_are(opened: Opened) -> None:
    opened.tab.click("#tabs >> text=Series")
    assert opened.tab.locator("#main img").count() == 0
    assert HOSTILE in opened.tab.inner_text("#series")


def test_what_to_act_on_comes_first_and_what_was_made_up_for_last(browser: Any, tmp_path: Path) -> None:
    slower, faster = replace(COMMIT, night=27), replace(COMMIT, night=34, effect=-0.13)
    # A little slower, in a step of less weight than that which is faster again.
    panel, found = lane(World(seed=2, nights=40, changes=[slower, faster, replace(COMMIT, night=30, ops=["linear"])]))
    numbered([(panel, found)], tmp_path)
    (tmp_path / "nightly.html").write_text(page([(panel, found)]))
    view = Opened(browser, tmp_path / "nightly.html")
    cards = view.tab.locator(".event").all_inner_texts()
    assert [one in card for one, card in zip(("linear", "experts", "made up for"), cards, strict=True)] == [True] * 3
    assert "1 of them slower by our own code" in view.tab.inner_text("#verdict")
    view.tab.context.close()
