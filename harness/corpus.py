"""The corpus: cases that somebody's kernel once failed, judged before all others on every device.

A case is data: one JSON object a file, whose every field is checked before it is used. Nothing in it is executed, no
pickle is read, and its bits are made anew from the recipe on each machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import find_op
from minimax_m2.harness.verdict import Outcome, Verdict

SCHEMA = 1
LARGEST_FILE = 4096
LONGEST_EVIDENCE = 600
SUFFIX = ".json"
# A size beyond all that ops draw would only fill memory.
LARGEST_SIZE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A case and how it was failed.

    outcome   what the provider did; ``evidence`` in words, cut off where it is long
    provider  whose kernel it was; a name, never code
    torch     the version that it was found with
    """

    case: dict[str, Field]
    case_id: str
    outcome: str
    evidence: str
    provider: str
    device: str
    variant: str
    torch: str
    schema: int = SCHEMA

    @classmethod
    def of(cls, verdict: Verdict, *, torch: str) -> Known:
        """What to keep of a verdict; ValueError for one that is no failure."""
        if verdict.passed or verdict.outcome in (Outcome.UNSUPPORTED, Outcome.VACUOUS):
            raise ValueError(f"case {verdict.case.id} of {verdict.op} is {verdict.outcome.value}, no failure to keep")
        return cls(
            case=dict(verdict.case), case_id=verdict.case.id, outcome=verdict.outcome.value,
            evidence="; ".join(verdict.evidence)[:LONGEST_EVIDENCE], provider=verdict.provider,
            device=verdict.device, variant=verdict.variant, torch=torch,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Known:
        """Read one back; ValueError names the field that is not what it must be."""
        try:
            found = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{text[:40]!r} is not JSON: {error}") from error
        types = {f.name: dict if f.name == "case" else int if f.name == "schema" else str for f in fields(cls)}
        if not isinstance(found, dict) or set(found) != set(types):
            off = sorted(set(found) ^ set(types)) if isinstance(found, dict) else [type(found).__name__]
            raise ValueError(f"fields are missing or unknown: {off}")
        for name, kind in types.items():
            if type(found[name]) is not kind:
                raise ValueError(f"{name}={found[name]!r} is a {type(found[name]).__name__}, expected {kind.__name__}")
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema={found['schema']} cannot be read; this is {SCHEMA}")
        if found["outcome"] not in {o.value for o in Outcome}:
            raise ValueError(f"outcome={found['outcome']!r} is unknown")
        case = validated(Case(found["case"]))
        if found["case_id"] != case.id:
            raise ValueError(f"case_id={found['case_id']!r} is not that of its case, {case.id}")
        return cls(**found)

    @property
    def json(self) -> str:
        """One field a line, so that two people's files merge."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


def validated(case: Case) -> Case:
    """The case itself where it is one of its op; ValueError says what is off.

    Every factor is there, of the type that the op draws, and a word is one that the op knows.
    """
    try:
        op = find_op(case.op)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    off = sorted({*op.factors, "seed"} ^ (set(case) - {"op"}))
    if off:
        raise ValueError(
            f"case field {off[0]!r} is missing or unknown; m2check generate --op {op.name} prints whole cases"
        )
    settled = op.settle({name: value for name, value in case.items() if name != "op"})
    if settled is None:
        raise ValueError(f"op {op.name} refuses the case {case.json}")
    words = {str(v) for values in op.factors.values() for v in values if isinstance(v, str)}
    for name, values in op.factors.items():
        kinds = {type(v) for v in values}
        if type(case[name]) not in kinds:
            raise ValueError(f"case field {name}={case[name]!r} is no {' or '.join(sorted(k.__name__ for k in kinds))}")
        if isinstance(case[name], str) and case[name] not in words:
            raise ValueError(f"case field {name}={case[name]!r} is none of {', '.join(sorted(words))}")
        least = min([0, *(v for v in values if isinstance(v, int))])
        if isinstance(case[name], int) and not least <= int(case[name]) <= LARGEST_SIZE:
            raise ValueError(f"case field {name}={case[name]!r} is outside {least}..{LARGEST_SIZE}")
    return case


def corpus_dir() -> Path | None:
    """``suites/corpus`` of the checkout this package runs from, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "suites" / "corpus"
    return folder if folder.is_dir() else None


def load(path: Path) -> Known:
    """One file; ValueError names it."""
    try:
        if path.suffix != SUFFIX:
            raise ValueError(f"a case is a {SUFFIX} file; nothing else is opened")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size} bytes are more than a case has ({LARGEST_FILE})")
        found = Known.from_json(path.read_text())
        if path.name != file_name(found):
            raise ValueError(f"it holds {file_name(found)}: rename it")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def file_name(known: Known) -> str:
    """``<op>-<case id>.json``."""
    return f"{known.case['op']}-{known.case_id}{SUFFIX}"


def save(known: Known, folder: Path) -> Path:
    """Write a case; the first who failed it stays its finder."""
    path = folder / file_name(known)
    Known.from_json(known.json)
    if not path.exists():
        path.write_text(known.json)
    return path


def all_known(folder: Path | None) -> Iterator[Known]:
    """Every case of a folder, by name; ValueError for a file that is none."""
    for path in sorted(folder.iterdir()) if folder is not None else []:
        yield load(path)


@lru_cache(maxsize=1)
def known_cases() -> dict[str, list[Case]]:
    """The checkout's cases by op."""
    found: dict[str, list[Case]] = {}
    for known in all_known(corpus_dir()):
        case = Case(known.case)
        found.setdefault(case.op, []).append(case)
    return found
