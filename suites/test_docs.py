"""Every number in a documentation table says what kind it is: measured, computed or simulated.

The line above a table with numbers begins `*measured* (record id)`, `*computed* (formula)` or `*simulated* (seed)`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KIND = re.compile(r"\*(?:measured|computed|simulated)\* \([^)]+\)")
INLINE_CODE = re.compile(r"`[^`]*`")
# A digit that begins a word is a number; the one in `fp8` or `M2` is a name's.
NUMBER = re.compile(r"(?<![\w.])[-+~]?\d")


def numbers_without_kind(root: Path) -> list[str]:
    """Return `file:line` of each table in docs/*.md that holds a number and is not preceded by its kind."""
    found = []
    for path in sorted((root / "docs").glob("*.md")):
        above, start, table = "", 0, []
        for number, line in enumerate([*path.read_text().splitlines(), ""], 1):
            if line.lstrip().startswith("|"):
                start = start or number
                table.append(INLINE_CODE.sub("", line))
                continue
            if NUMBER.search(" ".join(table)) and not KIND.match(above):
                found.append(f"{path.relative_to(root)}:{start}")
            # One empty line may stand between the kind and its table.
            above = line if line.strip() or table else above
            start, table = 0, []
    return found


def test_every_number_in_the_docs_has_a_kind() -> None:
    assert numbers_without_kind(ROOT) == []


TABLE = "| op | error |\n|---|---|\n| `fp8_linear` | 3.1 |\n"


@pytest.mark.parametrize(
    "text",
    [
        "*measured* (record 3fa2)\n" + TABLE,
        "*computed* (u = 2^-53), for M2:\n\n" + TABLE,
        "*simulated* (seed 7)\n" + TABLE + "\nText.\n",
        "| op | dtype |\n|---|---|\n| `top_k = 8` | fp8 |\n",
    ],
)
def test_a_number_with_its_kind_passes(tmp_path: Path, text: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/numbers.md").write_text(text)
    assert numbers_without_kind(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "Measured on our machine:\n" + TABLE,
        "*measured*\n" + TABLE,
        "*guessed* (by eye)\n" + TABLE,
        "*measured* (record 3fa2)\n" + TABLE + "\n" + TABLE,
        "*measured* (record 3fa2)\n\nA sentence between.\n\n" + TABLE,
    ],
)
def test_a_number_without_its_kind_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/numbers.md").write_text(text)
    assert numbers_without_kind(tmp_path) != []
