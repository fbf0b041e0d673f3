"""Mutation of the harness itself: which of its own lines, changed a little, no test of its own notices.

The changes are cosmic-ray's (comparisons, arithmetic, constants, conditions, loops that do not run). Each is loaded in
place of its module in a forked process that has imported torch already, and its module's tests are run until one fails,
the quickest first.
``ci/mutation.toml`` says which tests a module has, and excuses changes that nobody can tell, with the reason:

    ci/mutate.sh [--module compare] [--every 4] [--shard 2/6 --kept runs/mutation.jsonl] [--record ci/results/FILE.json]
    ci/mutate.sh --kept runs/mutation.jsonl --told --record ci/results/FILE.json

``--kept`` appends each outcome and tries nothing again that stands there: a run goes on where it was killed, parts run
beside each other into one file, and a run over all of it makes the record. What survived is tried again once a test of
its module changes; what was caught stays so, so begin a new file where a test was taken away.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Nothing else of the harness: a module that imported the right one before it is changed would go on with that.
from minimax_m2.harness.shards import WHOLE, Shard, sharded

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "ci" / "mutation.toml"
# One or two replacements each; of eleven others for a plus, every one fails the same test.
OPERATORS = re.compile(
    r"core/(?:AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|NumberReplacer"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop|ExceptionReplacer"
    r"|ReplaceComparisonOperator_(?:Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|Is_IsNot"
    r"|IsNot_Is)"
    r"|ReplaceBinaryOperator_(?:Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|FloorDiv_Mul|Mod_FloorDiv)"
    r"|ReplaceUnaryOperator_(?:USub_UAdd|Delete_Not))"
)
DECORATOR = re.compile(r"^\s*@")
# A star of a signature, taken for a product.
STAR = re.compile(r"(?:^|[(,])\s*/,")
STRICT = "strict=True"
PATIENCE = 5
"""A change may take so many times as long as the tests do without one."""
GOAL = 0.97
KILLED, SURVIVED, EXCUSED = "killed", "survived", "excused"


@dataclass(frozen=True, slots=True)
class Change:
    """A module's text with one line changed."""

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        """Which line becomes what, so that it stays when other lines move."""
        return f"{self.module}: {self.before.strip()} -> {self.after.strip()}"

    @property
    def key(self) -> str:
        """Tells changes apart, those of equal lines too; what only explains does not count."""
        return _digest(_code(self.text))


def changes(module: str, text: str) -> Iterator[Change]:
    """Every change of a module, from its first line to its last; ImportError without cosmic-ray."""
    mutating, plugins = (importlib.import_module(f"cosmic_ray.{name}") for name in ("mutating", "plugins"))
    found = dict[str, Change]()
    for name in filter(OPERATORS.fullmatch, plugins.operator_names()):
        for place in range(_places(text, plugins.get_operator(name)())):
            changed = mutating.mutate_code(text, plugins.get_operator(name)(), place)
            if changed is None or changed in found or not _compiles(changed):
                continue
            pairs = enumerate(zip(text.splitlines(), changed.splitlines(), strict=False), 1)
            number, (before, after) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
            if not declares(before, after):
                found[changed] = Change(module, number, before, after, changed)
    yield from sorted(found.values(), key=lambda change: (change.line, change.after))


def declares(before: str, after: str) -> bool:
    """Whether only what computes nothing changed.

    A decorator says how a value is kept, a star how arguments are passed; ``strict`` asserts what holds of all that is
    right.
    """
    return bool(DECORATOR.match(before) or STAR.search(after)) or before.count(STRICT) > after.count(STRICT)


def _places(text: str, operator: Any) -> int:
    tree = importlib.import_module("cosmic_ray.ast")
    return sum(1 for node in tree.ast_nodes(tree.get_ast(text)) for _ in operator.mutation_positions(node))


def _compiles(text: str) -> bool:
    """Whether a text is Python at all: ``if not found := of(x)`` is not."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _code(text: str) -> str:
    """A module's text without lines that are empty, comments or docstrings."""
    told = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in told)
    return "\n".join(text.splitlines()[number - 1] for number, line in lines if line and not line.startswith("#"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Kept:
    """Outcomes in a file of JSON lines, each with a hash of the tests that found it; in none without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._found = path, dict[str, dict[str, str]]()
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            found = json.loads(line)
            self._found[found["key"]] = found

    def get(self, change: Change, tests: str) -> str | None:
        """What became of a change, None where it is to be tried."""
        found = self._found.get(change.key, {})
        if found.get("outcome") == KILLED or found.get("tests") == tests:
            return found["outcome"]
        return None

    def add(self, change: Change, tests: str, found: str) -> None:
        """Append an outcome, in one write: parts may share the file."""
        line = {"key": change.key, "change": change.name, "tests": tests, "outcome": found}
        self._found[change.key] = line
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Quickest:
    """A pytest plugin: the quickest tests come first, by the seconds in a file; where there is none, it is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, path.exists()
        self._seconds: dict[str, float] = json.loads(path.read_text()) if self._known else {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """What was not run before comes last."""
        items.sort(key=lambda item: self._seconds.get(item.nodeid, math.inf))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up set-up, call and end."""
        if not self._known:
            self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Keep the seconds of a run that had none."""
        if not self._known:
            self._path.write_text(json.dumps(self._seconds))


def outcome(change: Change, tests: Sequence[str], *, package: str, seconds: float, times: Path | None = None) -> str:
    """Run tests on a change in a process of its own: ``killed`` where one fails or they take too long.

    times   a file of what each test takes, written where it is not there; the quickest are run first
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(_tested(change, tests, package, [] if times is None else [Quickest(times)]))
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return SURVIVED if status == 0 else KILLED
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return KILLED
        time.sleep(0.02)


def _tested(change: Change, tests: Sequence[str], package: str, plugins: list[Any]) -> int:
    """Load the changed module in place of the right one, then test; whatever it raises is noticed, too."""
    try:
        name = f"{package}.{change.module}"
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is a module"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        exec(compile(change.text, str(spec.origin), "exec"), module.__dict__)
        setattr(importlib.import_module(package), change.module, module)
        pytest = importlib.import_module("pytest")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
        return int(pytest.main([*options, *tests], plugins=plugins))
    except BaseException:
        return 1


def settings(path: Path = SETTINGS) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Tests by module, and reasons by the name of an excused change."""
    found = tomllib.loads(path.read_text())
    return found["tests"], {entry["change"]: entry["reason"] for entry in found.get("excused", [])}


def judged(
    module: str,
    tests: Sequence[str],
    excused: dict[str, str],
    *,
    every: int = 1,
    part: Shard = WHOLE,
    kept: Kept | None = None,
    tries: bool = True,
    package: str = "minimax_m2.harness",
) -> dict[str, Any]:
    """Outcomes of a part of every so many-th change of a module: how many of each kind, and which survived.

    Where nothing new is to be tried, ``kept`` alone says what became of a change.
    """
    spec = importlib.util.find_spec(f"{package}.{module}")
    assert spec is not None, f"{package}.{module} is a module"
    text, kept = Path(str(spec.origin)).read_text(), kept or Kept(None)
    chosen = part.of(list(changes(module, text))[::every], lambda change: 1.0)
    by = _digest("".join(Path(path).read_text() for path in tests))
    seconds = None
    counts, survivors, unused = {KILLED: 0, SURVIVED: 0, EXCUSED: 0}, list[str](), set[str]()
    times = Path(tempfile.mkdtemp(prefix="mutation-")) / "seconds.json"
    for change in chosen:
        found = kept.get(change, by)
        if found is None and not tries:
            continue
        if found is None:
            seconds = seconds or _patience(Change(module, 0, "", "", text), tests, package, times)
            found = outcome(change, tests, package=package, seconds=seconds, times=times)
            kept.add(change, by, found)
        if found == SURVIVED and change.name in excused:
            found = EXCUSED
        if found == KILLED and change.name in excused:
            unused.add(change.name)
        counts[found] += 1
        survivors += [change.name] if found == SURVIVED else []
        print(f"{found:8} {change.line:4} {change.name}", flush=True)  # noqa: T201 - progress of a command of hours
    shutil.rmtree(times.parent)
    tried = {"changes": len(chosen), "tried": sum(counts.values())}
    return {**tried, **counts, "survivors": survivors, "caught though excused": sorted(unused)}


def _patience(unchanged: Change, tests: Sequence[str], package: str, times: Path) -> float:
    """How long tests may take on a change. Raises ValueError where they fail without one."""
    start = time.monotonic()
    if outcome(unchanged, tests, package=package, seconds=600, times=times) is KILLED:
        raise ValueError(f"the tests of {unchanged.module} fail without a change: {' '.join(tests)}")
    return PATIENCE * (time.monotonic() - start) + 10


def rate(found: dict[str, dict[str, Any]]) -> float:
    """The share of changes that are told, of those that can be."""
    killed, survived = (sum(counts[kind] for counts in found.values()) for kind in (KILLED, SURVIVED))
    return killed / (killed + survived) if killed + survived else 1.0


def table(found: dict[str, dict[str, Any]]) -> str:
    """The modules of a record as Markdown."""
    head = "| module | changes | tried | caught | excused | survived |\n|---|---|---|---|---|---|"
    columns = ("changes", "tried", KILLED, EXCUSED, SURVIVED)
    rows = (f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |" for name, counts in found.items())
    return "\n".join([head, *rows])


def record(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Write what was found as JSON; modules that were not judged now stay as they stand in the file."""
    before = json.loads(path.read_text())["modules"] if path.exists() else {}
    modules = dict(sorted((before | found).items()))
    told = {"date": datetime.now(UTC).date().isoformat(), "rate": rate(modules), "modules": modules}
    path.write_text(json.dumps(told, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge modules and say what survived; 1 where more do than the goal allows, or one that is excused is caught."""
    known, excused = settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", choices=sorted(known), help="only this one (repeatable)")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th change")
    parser.add_argument("--shard", default="1/1", help="a part of each module's changes: 2/6")
    parser.add_argument("--kept", type=Path, help="append outcomes to this file, and try nothing again that it holds")
    parser.add_argument("--told", action="store_true", help="try nothing: count what --kept holds")
    parser.add_argument("--record", type=Path, help="enter what was found into this JSON")
    given = parser.parse_args(arguments)
    if given.told and not (given.kept and given.kept.exists()):
        parser.error(f"--told counts what --kept holds; {given.kept or 'no file'} is not there")
    for name in ("torch", "numpy", "hypothesis", "pytest"):
        importlib.import_module(name)
    os.chdir(ROOT)
    part, kept = sharded(given.shard), Kept(given.kept)
    found = {
        module: judged(module, known[module], excused, every=given.every, part=part, kept=kept, tries=not given.told)
        for module in given.module or sorted(known)
    }
    if given.record is not None:
        record(given.record, found)
    late = [name for counts in found.values() for name in counts["caught though excused"]]
    print(table(found))  # noqa: T201
    print(f"{rate(found):.1%} of changes are told; the goal is {GOAL:.0%}")  # noqa: T201
    print("".join(f"excused, but caught: {name}\n" for name in late), end="")  # noqa: T201
    return int(rate(found) < GOAL or bool(late))


if __name__ == "__main__":
    sys.exit(main())
