"""Mutation of the harness itself: which of its own lines, changed a little, no test of its own notices.

The changes are cosmic-ray's (comparisons, arithmetic, constants, conditions, loops that do not run). Each is loaded in
place of its module in a forked process that has imported torch already, and its module's tests are run until one fails.
``ci/mutation.toml`` says which tests a module has, and excuses changes that nobody can tell, with the reason:

    ci/mutate.sh [--module compare] [--every 4] [--record ci/results/mutation-DATE.json]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
# A decorator says how a value is kept, not what it is.
PASSED_OVER = re.compile(r"^\s*@")
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


def changes(module: str, text: str) -> Iterator[Change]:
    """Every change of a module, from its first line to its last; ImportError without cosmic-ray."""
    mutating, plugins = (importlib.import_module(f"cosmic_ray.{name}") for name in ("mutating", "plugins"))
    found = dict[str, Change]()
    for name in filter(OPERATORS.fullmatch, plugins.operator_names()):
        for place in range(_places(text, plugins.get_operator(name)())):
            changed = mutating.mutate_code(text, plugins.get_operator(name)(), place)
            if changed is None or changed in found:
                continue
            pairs = enumerate(zip(text.splitlines(), changed.splitlines(), strict=False), 1)
            number, (before, after) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
            if not PASSED_OVER.match(before):
                found[changed] = Change(module, number, before, after, changed)
    yield from sorted(found.values(), key=lambda change: (change.line, change.after))


def _places(text: str, operator: Any) -> int:
    tree = importlib.import_module("cosmic_ray.ast")
    return sum(1 for node in tree.ast_nodes(tree.get_ast(text)) for _ in operator.mutation_positions(node))


def outcome(change: Change, tests: Sequence[str], *, package: str, seconds: float) -> str:
    """Run tests on a change in a process of its own: ``killed`` where one fails or they take too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(_tested(change, tests, package))
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


def _tested(change: Change, tests: Sequence[str], package: str) -> int:
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
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))
    except BaseException:
        return 1


def settings(path: Path = SETTINGS) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Tests by module, and reasons by the name of an excused change."""
    found = tomllib.loads(path.read_text())
    return found["tests"], {entry["change"]: entry["reason"] for entry in found.get("excused", [])}


def judged(
    module: str, tests: Sequence[str], excused: dict[str, str], *, every: int, package: str = "minimax_m2.harness"
) -> dict[str, Any]:
    """Outcomes of every so many-th change of a module: how many of each kind, and which survived."""
    spec = importlib.util.find_spec(f"{package}.{module}")
    assert spec is not None, f"{package}.{module} is a module"
    text = Path(str(spec.origin)).read_text()
    start = time.monotonic()
    unchanged = Change(module, 0, "", "", text)
    if outcome(unchanged, tests, package=package, seconds=600) is KILLED:
        raise ValueError(f"the tests of {module} fail without a change: {' '.join(tests)}")
    seconds = PATIENCE * (time.monotonic() - start) + 10
    counts, survivors, unused = {KILLED: 0, SURVIVED: 0, EXCUSED: 0}, list[str](), set[str]()
    for change in list(changes(module, text))[::every]:
        found = outcome(change, tests, package=package, seconds=seconds)
        if found == SURVIVED and change.name in excused:
            found = EXCUSED
        if found == KILLED and change.name in excused:
            unused.add(change.name)
        counts[found] += 1
        survivors += [change.name] if found == SURVIVED else []
        print(f"{found:8} {change.line:4} {change.name}", flush=True)  # noqa: T201 - progress of a command of hours
    return {**counts, "survivors": survivors, "caught though excused": sorted(unused)}


def rate(found: dict[str, dict[str, Any]]) -> float:
    """The share of changes that are told, of those that can be."""
    killed, survived = (sum(counts[kind] for counts in found.values()) for kind in (KILLED, SURVIVED))
    return killed / (killed + survived) if killed + survived else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge modules and say what survived; 1 where more do than the goal allows, or one that is excused is caught."""
    known, excused = settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", choices=sorted(known), help="only this one (repeatable)")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th change")
    parser.add_argument("--record", type=Path, help="write what was found as JSON")
    given = parser.parse_args(arguments)
    for name in ("torch", "numpy", "hypothesis", "pytest"):
        importlib.import_module(name)
    os.chdir(ROOT)
    found = {
        module: judged(module, known[module], excused, every=given.every) for module in given.module or sorted(known)
    }
    told = {"date": datetime.now(UTC).date().isoformat(), "every": given.every, "rate": rate(found), "modules": found}
    if given.record is not None:
        given.record.write_text(json.dumps(told, indent=1) + "\n")
    late = [name for counts in found.values() for name in counts["caught though excused"]]
    for module, counts in found.items():
        print(f"{module}: {counts[KILLED]} killed, {counts[SURVIVED]} survived, {counts[EXCUSED]} excused")  # noqa: T201
    print(f"{rate(found):.1%} of changes are told; the goal is {GOAL:.0%}")  # noqa: T201
    print("".join(f"excused, but caught: {name}\n" for name in late), end="")  # noqa: T201
    return int(rate(found) < GOAL or bool(late))


if __name__ == "__main__":
    sys.exit(main())
