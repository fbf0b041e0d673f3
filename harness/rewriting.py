"""Defects in the sources of our CPU kernels: one place of one line of C++ rewritten, as somebody could have typed it.

An operator knows C++ only by its look. It passes over comments, preprocessor lines and what only says how work is
divided among threads or fetched ahead, where another number is as right. Nothing compiles here; ``rebuilding.py`` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Lines that are no code, or that decide speed alone: threads, fetching ahead, unrolling, compile-time checks.
PASSED_OVER = re.compile(
    r"^\s*(?:#|//|static_assert|template\b|using\b|namespace\b)|prefetch|serial_|SERIAL_|FETCH_|[Ss]trips|STRIPS|omp_"
)

Operator = Callable[[str], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One line rewritten; ``defect`` names the operator."""

    file: str
    line: int
    defect: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """Where and what, by the line's own text, so that it stays when other lines move."""
        return f"{self.file}: {self.defect}: {self.after.partition('//')[0].strip()}"

    def apply(self, text: str) -> str:
        """The file's text with the line rewritten; ValueError where the line is another."""
        lines = text.splitlines(keepends=True)
        if lines[self.line - 1].rstrip("\n") != self.before:
            raise ValueError(f"{self.file}, line {self.line} is {lines[self.line - 1]!r}, expected {self.before!r}")
        lines[self.line - 1] = self.after + "\n"
        return "".join(lines)


def rewrites(path: Path) -> Iterator[Rewrite]:
    """Every rewrite of a source, line by line; what two operators make of a line alike counts for the first."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if PASSED_OVER.search(line):
            continue
        code, slashes, comment = line.partition("//")
        made = {code}
        for defect, operator in OPERATORS.items():
            for after in operator(code):
                if after not in made:
                    made.add(after)
                    yield Rewrite(path.name, number, defect, line, after + slashes + comment)


def by(pattern: str, template: str) -> Operator:
    """Rewrites each place where a pattern is found."""
    compiled = re.compile(pattern)

    def operator(code: str) -> Iterator[str]:
        for found in compiled.finditer(code):
            yield code[: found.start()] + found.expand(template) + code[found.end() :]

    return operator


def in_calls(function: str, change: Callable[[list[str]], list[str]], count: int) -> Operator:
    """Rewrites the ``count`` arguments of each call of a function that ends on its line."""
    compiled = re.compile(rf"(?<![\w.:]){function}\(")

    def operator(code: str) -> Iterator[str]:
        for found in compiled.finditer(code):
            given, length = arguments(code[found.end() :])
            if len(given) == count:
                yield f"{code[: found.end()]}{', '.join(change(given))}{code[found.end() + length :]}"

    return operator


def arguments(text: str) -> tuple[list[str], int]:
    """The arguments of a call that begin a text, and how long they are; none where the call does not end in it."""
    found, depth, start = list[str](), 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return [*found, text[start:at].strip()], at
        if letter == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    return [], 0


# A loop over numbers, and what ends it.
LOOP = r"for \(([^;]*); (\w+) < ([^;]+);"
NUMBERED = r"(\w*(?:scale|factor|weight|decay|divisor|total|own|cos|sin)\w*(?:\[[^\]]+\]|\([^()]*\))?)"

OPERATORS: dict[str, Operator] = {
    "a step too few": by(LOOP, r"for (\1; \2 < \3 - 1;"),
    "a step too many": by(LOOP, r"for (\1; \2 <= \3;"),
    "a tail taken for whole": by(r"\+ (?:\d \* )?(?:Float::)?N <= ", "+ 1 <= "),
    "tail skipped": by(r"if \((?:\w+ < \w+|rest > 0)\) (?!return|continue|break|\{)", "if (false) "),
    "mask dropped": in_calls("first_lanes", lambda given: ["Float::N"], 1),
    "branches exchanged": in_calls("blend", lambda given: [given[0], given[2], given[1]], 3),
    "halves exchanged": by(r"\b(?:half|GATES|args\.width|gate \+ args\.width) \+ ", ""),
    "unscaled": by(rf" [*/] {NUMBERED}(?![\w.(\[])", ""),
    "least for largest": by(r"\bstd::max(?=[<(])", "std::min"),
    "largest for least": by(r"\bstd::min(?=[<(])", "std::max"),
    "sign changed": by(r"\bfnma\(", "fma("),
    "sum for difference": by(r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    # Not where a tail begins: one of no lanes does nothing.
    "or equal": by(r"(?<=[\w)\]]) < (?=-?\d|LARGEST|SMALLEST|MAX)", " <= "),
    "bound 1 further": by(r" >= (?=[\w.]+(?:num|experts|count))", " > "),
    "not equal": by(r" == (?!NULL|nullptr)", " != "),
    "1 more": by(r"(?<=[\w)\]]) - 1\b", ""),
    "row of another": by(r"\b(?:token|row|slot|expert|head|group|t|r|g|e) \* (?=\w)", "0 * "),
    "left out": by(r"^(\s*)(?:store|fill|std::fill_n|std::memcpy|std::memset)\(.*\);\s*$", r"\1;"),
    "not advanced": by(r"^(\s*)[\w.\->\[\]]+ (?:\+=|\*=|-=) [^;]+;\s*$", r"\1;"),
}
