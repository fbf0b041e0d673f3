"""Acceptances: what a person said of an event, as TOML files under git, one an event.

An accepted event is told no more; its series start anew from there. The file names the change itself, so it holds in
every store that has it, whatever its number there.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from minimax_m2.harness.history.causes import percent
from minimax_m2.harness.history.events import Event
from minimax_m2.harness.history.panel import Panel

FOLDER = Path("ci/accepted")
LONGEST = 500


def accept(event: Event, panel: Panel, reason: str, *, folder: Path = FOLDER) -> Path:
    """Write an acceptance. Raises ValueError for an empty reason, or for what is wrong: that nobody can accept."""
    reason = " ".join(reason.split())
    if not reason or len(reason) > LONGEST:
        raise ValueError(f"--reason has {len(reason)} characters; say in 1 to {LONGEST} why this is as it should be")
    if event.state == "wrong":
        raise ValueError(f"event {event.number} is a wrong result; repair it, or take the case out with its reason")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{event.key(panel)}.toml"
    values = {
        "key": event.key(panel),
        "reason": reason,
        "accepted": datetime.now(UTC).date().isoformat(),
        "lane": event.lane,
        "what": event.factor,
        "night": panel.nights[event.night].date,
        "moved": percent(event.effect),
        "cause": event.ruling.cause.value,
        "rule": event.ruling.rule,
    }
    path.write_text("".join(f"{name} = {quoted(value)}\n" for name, value in values.items()))
    return path


def quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's, but for one character that TOML wants escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def reasons(folder: Path = FOLDER) -> dict[str, str]:
    """Reason by event key. Raises ValueError naming a file that is no acceptance."""
    found = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            said = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no TOML: {error}") from error
        if not isinstance(said.get("key"), str) or not str(said.get("reason", "")).strip():
            raise ValueError(f"{path} lacks key or reason")
        found[said["key"]] = str(said["reason"])
    return found


def numbered(lanes: Iterable[tuple[Panel, list[Event]]], folder: Path = FOLDER) -> None:
    """Give the events of all lanes their numbers, by night, and their acceptances."""
    said = reasons(folder)
    every = [(panel, event) for panel, events in lanes for event in events]
    every.sort(key=lambda pair: (pair[0].nights[pair[1].night].run, pair[1].lane, pair[1].metric, pair[1].factor))
    for number, (panel, event) in enumerate(every, 1):
        event.number = number
        event.accepted = said.get(event.key(panel), "")
