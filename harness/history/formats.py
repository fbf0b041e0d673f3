"""Events for other programs: Markdown for a summary, JUnit and CTRF for a CI, JSON for everybody."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

from minimax_m2.harness.history.causes import percent
from minimax_m2.harness.history.pages import event_row
from minimax_m2.harness.history.tonight import Lanes

FORMATS = ("text", "markdown", "junit", "ctrf", "json")
# What Markdown would read as markup: a branch's name or a reason may hold anything.
MARKUP = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>()#+|!~"} | {"\n": " "})
# XML has no place for these, however they are written.
UNPRINTABLE = {code: "?" for code in (*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF)}


def rows(lanes: Lanes) -> list[dict[str, Any]]:
    """Each event as the page shows it, with its lane by name."""
    return [
        event_row(panel, number, event) | {"lane": panel.lane}
        for number, (panel, events) in enumerate(lanes)
        for event in events
    ]


def written(lanes: Lanes, form: str) -> str:
    """The events in one of ``FORMATS`` but text."""
    return {"markdown": markdown, "junit": junit, "ctrf": ctrf, "json": as_json}[form](rows(lanes))


def as_json(found: list[dict[str, Any]]) -> str:
    return json.dumps(found, indent=1, sort_keys=True)


def size(row: dict[str, Any]) -> str:
    """How far an event moved, in words."""
    if row["cause"] == "wrong":
        return "wrong" if row["effect"] is None else f"{row['effect']:.3g} x its bound"
    if row["metric"] == "bits":
        return "other bits"
    return f"{percent(row['effect'])} [{percent(row['low'])}, {percent(row['high'])}]"


def markdown(found: list[dict[str, Any]]) -> str:
    """A table with one row an event, those to act on first."""
    lines = ["| event | cause | what | moved | night | rule | next |", "|---|---|---|---|---|---|---|"]
    for row in sorted(found, key=lambda row: not row["regression"]):
        texts = (str(row["number"]), row["cause"], f"{row['what']}, {row['lane']}", size(row), row["date"], row["rule"])
        # In a code span a backtick is the only markup, and a bar still ends a cell.
        command = row["command"].replace("`", "'").replace("|", "\\|")
        lines.append(f"| {' | '.join(text.translate(MARKUP) for text in texts)} | `{command}` |")
    return "\n".join(lines)


def junit(found: list[dict[str, Any]]) -> str:
    """One test case an event: failed where somebody must act."""
    failures = sum(row["regression"] for row in found)
    suite = ElementTree.Element("testsuite", name="m2check events", tests=str(len(found)), failures=str(failures))
    for row in found:
        name = printable(f"event {row['number']}: {row['what']}")
        case = ElementTree.SubElement(suite, "testcase", classname=printable(row["lane"]), name=name)
        if row["regression"]:
            told = printable(f"{row['cause']}: {size(row)}")
            failure = ElementTree.SubElement(case, "failure", message=told)
            failure.text = printable(f"{row['rule']}\n{row['text']}\n{row['command']}")
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def printable(text: str) -> str:
    """Text without what XML cannot hold."""
    return text.translate(UNPRINTABLE)


def ctrf(found: list[dict[str, Any]]) -> str:
    """The Common Test Report Format."""
    failed = sum(row["regression"] for row in found)
    counts = {
        "tests": len(found),
        "passed": len(found) - failed,
        "failed": failed,
        "pending": 0,
        "skipped": 0,
        "other": 0,
    }
    tests = [
        {
            "name": f"event {row['number']}: {row['what']}",
            "status": "failed" if row["regression"] else "passed",
            "duration": 0,
            "message": f"{row['cause']}: {size(row)}; {row['rule']}",
        }
        for row in found
    ]
    results = {"tool": {"name": "m2check"}, "summary": counts | {"start": 0, "stop": 0}, "tests": tests}
    return json.dumps({"reportFormat": "CTRF", "specVersion": "0.0.0", "results": results}, indent=1)
