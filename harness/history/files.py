"""Files of records from anywhere: read whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimax_m2.harness.history.series import series_of
from minimax_m2.harness.paired import PairRecord
from minimax_m2.harness.record import Pair, Record

RUN = re.compile(r"\d{8}T\d{6}(?:\.\d{1,6})?Z")
# Lines of other kinds that the project writes; they are no points of a series.
OTHER_KINDS = ("model", "graph", "replay", "level")
# A bomb of zeros is no file of records: gzip packs ours about twentyfold.
LARGEST_BYTES = 2**30
# Whole numbers of a database, and what a line has that holds a larger one, a zero byte or half a character.
LARGEST_NUMBER = 2**63 - 1
ODD = re.compile(r"\\u(?:0000|[dD][89a-fA-F])|\d{19}")


class Unreadable(ValueError):
    """A file that is no whole file of records; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its records, and how many lines of other kinds were left out."""

    records: list[Record]
    left_out: dict[str, int]


def read_file(path: Path) -> Content:
    """All records of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises Unreadable where a line is no record, the last one is half-written, or the compressed file is cut short.
    """
    text = _text(path)
    if text and not text.endswith("\n"):
        raise Unreadable(f"line {text.count(chr(10)) + 1} has no end: the file is cut short")
    records, left_out = list[Record](), Counter[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if ODD.search(line):
                _storable(found)
            if isinstance(found, dict) and found.get("kind") in OTHER_KINDS:
                left_out[str(found["kind"])] += 1
            else:
                records += _records(found, line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unreadable(f"line {number}: {error}") from error
    if not records and not left_out:
        raise Unreadable("it holds no record")
    return Content(records, dict(left_out))


def _storable(value: Any) -> None:
    """Raise ValueError for what no database takes: the index would fail on a file that is already kept."""
    if isinstance(value, dict):
        for name, held in value.items():
            _storable(name)
            _storable(held)
    elif isinstance(value, list):
        for held in value:
            _storable(held)
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
        raise ValueError(f"{value[:40]!r} holds what is no character")
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"the number {str(value)[:40]} has more than 63 bits")


def _text(path: Path) -> str:
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as packed:
                content = packed.read(LARGEST_BYTES + 1)
        else:
            with path.open("rb") as plain:
                content = plain.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise Unreadable(f"it is larger than {LARGEST_BYTES >> 20} MiB")
        return content.decode()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Unreadable(f"the compressed file is cut short or damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is no text: {error}") from error


def _records(found: Any, line: str) -> Iterator[Record]:
    """A record as a line holds it, or the two of a comparison."""
    if isinstance(found, dict) and {"a", "b", "ratio"} <= set(found):
        pair = PairRecord.from_json(line)
        # The ratio is b's time over a's.
        log_ratio, low, high = (-math.log(value) for value in (pair.ratio, pair.high, pair.low))
        beside = Pair(against=_name(pair.b), log_ratio=log_ratio, low=low, high=high, blocks=pair.blocks)
        yield from map(_dated, (replace(pair.a, paired=beside), pair.b))
        return
    yield _dated(Record.from_json(line))


def _name(record: Record) -> str:
    return ":".join(filter(None, (record.provider, record.variant)))


def _dated(record: Record) -> Record:
    if not RUN.fullmatch(record.run):
        raise ValueError(f"run {record.run[:40]!r} is no time as 20260131T235959.123456Z; nothing can be put in order")
    # Raises where a machine has no number of threads.
    series_of(record)
    return record
