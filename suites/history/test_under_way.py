"""Who looks on sees how far a night is: from its journal, in a page that is served, and only there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from minimax_m2.harness.history.events import events_of
from minimax_m2.harness.history.pages import page
from minimax_m2.harness.history.serving import CLOSED, OPEN, served, server
from minimax_m2.harness.history.simulated import World, simulated
from minimax_m2.harness.history.under_way import SHOWN, SUFFIX, Standing, Told, seen
from minimax_m2.harness.record import Log, Pair, Record

HOSTILE = "</script><img src=x onerror=alert(1)>"


def journal(root: Path, name: str = "20260101T020000.000000Z-abcd1234") -> Path:
    (root / "pending").mkdir(exist_ok=True)
    return root / "pending" / f"{name}.jsonl"


def told(path: Path, **changes: Any) -> Told:
    found = Told(path, Standing(run=path.name.partition("-")[0], against="0123456789abcdef", build="HEAD", budget=40))
    found.write(**changes)
    return found


def test_a_store_without_a_night_says_so(tmp_path: Path) -> None:
    assert seen(tmp_path) is None


def test_the_newest_cells_are_seen_first_and_a_half_written_line_is_not(record: Record, tmp_path: Path) -> None:
    path = journal(tmp_path)
    told(path, planned=40, told="ours experts decode", share=0.5)
    with Log(path) as log:
        for at in range(SHOWN + 8):
            log.append(replace(record, op=f"op{at}").json)
    with path.open("a") as file:
        file.write(record.json[:80])
    found = seen(tmp_path)
    assert found is not None
    assert (found["measured"], found["planned"], found["told"]) == (SHOWN + 8, 40, "ours experts decode")
    assert [cell["op"] for cell in found["cells"]] == [f"op{at}" for at in range(SHOWN + 7, 7, -1)]


def test_a_night_under_way_is_shown_before_one_that_has_ended_and_one_of_those_is_kept(tmp_path: Path) -> None:
    first, second, third = (journal(tmp_path, f"2026010{day}T020000Z-x") for day in (1, 2, 3))
    told(first, ended=True)
    told(second, told="second")
    told(third, ended=True)
    assert sorted(path.name[:8] for path in tmp_path.glob(f"pending/*{SUFFIX}")) == ["20260102", "20260103"]
    found = seen(tmp_path)
    assert found is not None
    assert found["told"] == "second"


def test_how_long_a_night_is_silent_is_told(tmp_path: Path) -> None:
    path = journal(tmp_path)
    told(path)
    file = path.with_suffix(SUFFIX)
    before = datetime.now(UTC) - timedelta(minutes=10)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"updated": before.isoformat()}))
    found = seen(tmp_path)
    assert found is not None
    assert 595 <= found["silent_s"] <= 620


@pytest.mark.parametrize("text", ["", "{]", "[1]", '{"ended": 3}'])
def test_a_file_that_is_no_standing_is_passed_over(tmp_path: Path, text: str) -> None:
    journal(tmp_path).with_suffix(SUFFIX).write_text(text)
    assert seen(tmp_path) is None


@pytest.fixture(scope="module")
def text() -> str:
    panel = simulated(World(seed=2, nights=20))
    return page([(panel, events_of(panel))])


@pytest.fixture
def address(text: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    file = tmp_path / "nightly.html"
    file.write_text(text)
    serving = server(file, "localhost", 0, store=tmp_path)
    thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
    thread.start()
    yield "localhost", serving.server_address[1]
    serving.shutdown()
    serving.server_close()
    thread.join()


def answer(address: tuple[str, int], path: str) -> tuple[int, str]:
    with closing(HTTPConnection(*address, timeout=10)) as connection:
        connection.request("GET", path)
        found = connection.getresponse()
        return found.status, found.read().decode()


def test_only_the_page_and_the_night_are_served(address: tuple[str, int], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    refused = [answer(address, path)[0] for path in ("/secret", "/../secret", "/nightly.html", "/progress/")]
    assert refused == [404] * 4
    assert json.loads(answer(address, "/progress")[1])["night"] is None


def test_only_a_page_that_is_served_may_ask(address: tuple[str, int], text: str) -> None:
    assert CLOSED in text
    assert "connect-src" not in text
    assert "fetch(" not in text
    assert OPEN in served(text)
    assert answer(address, "/")[1] == served(text)


def test_a_browser_follows_a_night_to_its_end(
    browser: Any, address: tuple[str, int], record: Record, text: str, tmp_path: Path
) -> None:
    path = journal(tmp_path)
    writing = told(path, planned=2, told=HOSTILE, share=0.25)
    pair = Pair(against="ours@0", log_ratio=0.1, low=0.05, high=0.15, blocks=12)
    tab, said = browser.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(f"http://{address[0]}:{address[1]}/")
    tab.wait_for_selector("#live progress")
    assert "0 of 2 cells" in tab.inner_text("#live h2")
    assert HOSTILE in tab.inner_text("#live")
    with Log(path) as log:
        log.append(replace(record, op=HOSTILE, paired=pair).json)
    tab.wait_for_selector("#live-cells")
    assert HOSTILE in tab.inner_text("#live-cells")
    assert "+10.5 %" in tab.inner_text("#live-cells")
    writing.write(ended=True, measured=2, told="2 cells are in the store")
    tab.wait_for_selector("#live h2 >> text=has ended")
    (tmp_path / "nightly.html").write_text(text)
    tab.wait_for_selector("#live button >> text=built again")
    assert tab.locator("#live img").count() == 0
    assert said == []
    tab.close()
