"""What a score judges, as a list that can be cut into parts for many machines, and the parts' results put together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from minimax_m2.harness.coverage import Coverage, coverage
from minimax_m2.harness.false_alarms import Tally, tallies
from minimax_m2.harness.museum import Exhibit, exhibits, museum_dir
from minimax_m2.harness.mutation import Mutant, mutants
from minimax_m2.harness.op import Op
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.score import Kill, score_museum, score_mutants
from minimax_m2.harness.score_sources import Planted, planted, score_sources
from minimax_m2.harness.shards import Shard, seconds_of

CASES, SHORT_CASES = 60, 40
RIGHT, SHORT_RIGHT = 400, 40
"""Cases an op on which implementations that are right are held; 10,000 in the nightly."""
SHORT_SHARE = 2
"""The short form judges every exhibit, but of the generic mutants only every so many-th."""
PART = "part"
"""The group of the line that says which part of which plan a file holds."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a score is asked for; no ops are all ops."""

    ops: tuple[str, ...] = ()
    short: bool = False
    right: int | None = None
    kernels: int = 0

    @property
    def cases(self) -> int:
        return SHORT_CASES if self.short else CASES

    @property
    def held(self) -> int:
        default = SHORT_RIGHT if self.short else RIGHT
        return default if self.right is None else self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is judged: bugs, mutants, rewritten lines, ops whose right implementations are held, ops to be covered."""

    KINDS: ClassVar = ("bugs", "mutants", "rewrites", "right", "covered")

    asked: Asked
    bugs: Sequence[Exhibit]
    mutants: Sequence[Mutant]
    rewrites: Sequence[Planted]
    right: Sequence[Op]
    covered: Sequence[Op]

    def cost(self, kind: str, at: int) -> float | None:
        """What one item takes, as far as it is known.

        To compile a rewrite takes most of its time, whatever the op; and costly ops are held right on fewer cases.
        """
        if kind == "bugs":
            return seconds_of(self.bugs[at].subject)
        return seconds_of(self.mutants[at].op.name) if kind == "mutants" else None

    def part(self, shard: Shard) -> Plan:
        """The part of one machine; each kind is cut for itself."""

        def cut(kind: str) -> list[Any]:
            every = getattr(self, kind)
            return [every[at] for at in shard.of(range(len(every)), lambda at: self.cost(kind, at))]

        return replace(self, **{kind: cut(kind) for kind in self.KINDS})  # type: ignore[arg-type]


@dataclass(slots=True)
class Score:
    """What came of a plan or of a part of it."""

    asked: Asked
    kills: list[Kill] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    coverages: list[Coverage] = field(default_factory=list)

    def lines(self, part: Shard) -> list[str]:
        """JSON, a line each; of a part the first says which it is."""
        about = {"group": PART, "index": part.index, "count": part.count, "asked": asdict(self.asked)}
        rows: list[dict[str, Any]] = [] if part.is_whole else [about]
        rows += [asdict(kill) for kill in self.kills]
        rows += [asdict(found) | {"group": "right", "below": found.below} for found in self.tallies]
        rows += [asdict(found) | {"group": "coverage", "share": found.share} for found in self.coverages]
        return [json.dumps(row) for row in rows]

    def enter(self, row: dict[str, Any]) -> None:
        """Enter one line where its group belongs; lists of JSON are tuples again."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        group = given.get("group")
        if group == "right":
            self.tallies.append(Tally.of(given))
        elif group == "coverage":
            pairs = tuple((tuple(a), tuple(b)) for a, b in given["never"])
            absent = tuple((name, value) for name, value in given["absent"])
            kept = {name: value for name, value in given.items() if name not in ("group", "share")}
            self.coverages.append(Coverage(**kept | {"never": pairs, "absent": absent}))
        else:
            self.kills.append(Kill(**given))


def plan(asked: Asked, ops: Sequence[Op]) -> Plan:
    """The whole plan of these ops, in an order that every machine makes alike."""
    folder = museum_dir()
    bugs = [] if folder is None else [e for e in exhibits(folder) if not asked.ops or e.subject in asked.ops]
    return Plan(
        asked=asked,
        bugs=sorted(bugs, key=lambda bug: (bug.subject, bug.name)),
        mutants=[mutant for op in ops for mutant in mutants(op)][:: SHORT_SHARE if asked.short else 1],
        rewrites=planted(asked.kernels, {op.stem or op.name for op in ops}),
        right=ops if asked.held else (),
        covered=ops,
    )


def measured(what: Plan, *, progress: Progress = lambda text, share: None) -> Score:
    """Judge a plan."""
    asked = what.asked
    kills = [
        *score_museum(what.bugs, cases=asked.cases, progress=progress),
        *score_mutants(what.mutants, cases=asked.cases, progress=progress),
        *score_sources(what.rewrites, cases=asked.cases, progress=progress),
    ]
    held = list(tallies([op.name for op in what.right], asked.held, progress=progress)) if what.right else []
    return Score(asked, kills, held, [coverage(op, sampled(op, asked.cases)) for op in what.covered])


def joined(files: Iterable[Path]) -> Score:
    """The score of a whole from what its parts printed with ``--json``.

    Raises ValueError where a file is no part, parts are of different plans, one is there twice, or one is missing.
    """
    parts: dict[Shard, Path] = {}
    whole: Score | None = None
    for path in files:
        about, *rows = _rows(path)
        if about.get("group") != PART:
            raise ValueError(f"{path} is no part of a score; m2check score --shard 1/2 --json writes one")
        asked, part = (
            Asked(**about["asked"] | {"ops": tuple(about["asked"]["ops"])}),
            Shard(about["index"], about["count"]),
        )
        whole = whole or Score(asked)
        count = next(iter(parts), part).count
        if asked != whole.asked or part.count != count:
            raise ValueError(f"{path} is part {part} of another plan than {next(iter(parts.values()))}")
        if part in parts:
            raise ValueError(f"part {part} is there twice: {parts[part]} and {path}")
        parts[part] = path
        for row in rows:
            whole.enter(row)
    if whole is None:
        raise ValueError("no file of a part is named; m2check score --shard 1/2 --json writes one")
    count = next(iter(parts)).count
    missing = [str(Shard(index, count)) for index in range(1, count + 1) if Shard(index, count) not in parts]
    if missing:
        raise ValueError(f"parts {', '.join(missing)} are missing: nobody says whether their bugs are caught")
    return whole


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no objects; m2check score --shard 1/2 --json writes them")
    return rows
