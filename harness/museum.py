"""The museum: real bugs of public engines, each a small provider that is right but for one line.

An exhibit is a Python file in the checkout's ``suites/museum``. It offers the one op that it breaks (or ``model``,
``load`` or ``shard``), and holds two things besides:

* ``EXHIBIT``, a literal of the fields of ``Exhibit``;
* one comment ``# right: CODE``: with the line below it replaced by CODE, the file is a correct provider, so that what
  is caught is the bug and nothing else.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.providers.plain import function_of

WHOLES = {"model": "model", "loader": "load", "sharding": "shard"}
"""Subjects that are no op, with the function that an exhibit of each offers."""

HELD_OUT = "held_out"
RIGHT = re.compile(r"^( *)# right: (.+)\n.*\n", re.MULTILINE)
PUBLIC = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(?:pull|issues|commit)/\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One bug.

    path          the file
    subject       the op that it breaks, ``model``, ``loader`` or ``sharding``
    source        the public issue, pull request or commit
    symptom       what people saw
    check         what is expected to catch it: ``output:test``, an outcome, or the name of a whole model's check
    tolerance     absolute and relative tolerance of the engine's own test of this op, or None where none is known
    tolerance_of  that test
    """

    path: Path
    subject: str
    source: str
    symptom: str
    check: str
    tolerance: tuple[float, float] | None
    tolerance_of: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def held_out(self) -> bool:
        """Whether it was written before any check was tuned."""
        return self.path.parent.name == HELD_OUT

    @property
    def offers(self) -> str:
        return WHOLES.get(self.subject, self.subject)


def museum_dir() -> Path | None:
    """The checkout's exhibits, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "suites" / "museum"
    return folder if folder.is_dir() else None


def exhibits(folder: Path) -> list[Exhibit]:
    """Read every exhibit below ``folder`` without running any; ValueError names the file and what is wrong with it."""
    return [read_exhibit(path) for path in sorted(folder.rglob("*.py"))]


def read_exhibit(path: Path) -> Exhibit:
    """Read the literal ``EXHIBIT`` of a file."""
    source = path.read_text()
    found = [
        statement.value
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "EXHIBIT"
    ]
    if len(found) != 1:
        raise ValueError(f"{path.name} has {len(found)} assignments to EXHIBIT; an exhibit has one, a literal")
    given = ast.literal_eval(found[0])
    known = {field.name for field in fields(Exhibit)} - {"path"}
    if set(given) - known or known - {"tolerance_of"} - set(given):
        raise ValueError(f"{path.name}: EXHIBIT has the fields {sorted(given)}, expected {sorted(known)}")
    exhibit = Exhibit(path=path, **given)
    for wrong in problems(exhibit, source):
        raise ValueError(f"{path.name}: {wrong}")
    return exhibit


def problems(exhibit: Exhibit, source: str) -> list[str]:
    """What is wrong with an exhibit's fields and text."""
    found = []
    if exhibit.subject not in {*all_ops(), *WHOLES}:
        found.append(f"subject={exhibit.subject!r} is no op, model, loader or sharding")
    if not PUBLIC.fullmatch(exhibit.source):
        found.append(f"source={exhibit.source!r} is no public issue, pull request or commit")
    if not exhibit.symptom or not exhibit.check:
        found.append("symptom and check say something")
    if (exhibit.tolerance is None) != (not exhibit.tolerance_of):
        found.append("tolerance and tolerance_of, the test that has it, come together")
    if len(RIGHT.findall(source)) != 1:
        found.append(f"has {len(RIGHT.findall(source))} comments `# right: ...`; a bug is one line")
    offered = {f.name for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    if offered & {*all_ops(), *WHOLES.values()} != {exhibit.offers}:
        found.append(f"offers {sorted(offered)}, expected {exhibit.offers} and no other op")
    return found


def mended(source: str) -> str:
    """An exhibit's text without its bug."""
    return RIGHT.sub(r"\1\2\n", source)


def load(path: Path) -> ModuleType:
    """Run an exhibit's file. It is code of this checkout."""
    spec = importlib.util.spec_from_file_location(f"exhibit_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right(name: str) -> Callable[..., Any]:
    """The plain float32 function of an op, or a packing function: what an exhibit is made of."""
    found = function_of(name)
    if found is None:
        raise ValueError(f"{name!r} is neither an op nor a packing function")
    return found


def own_sums(qkv: Tensor, sizes: Mapping[str, Any]) -> Tensor:
    """The sums of squares ``[T, 2]`` of one rank's q and k, from the sizes that ``qk_norm_rope`` is called with."""
    return right("qk_sum_squares")(qkv, **{name: sizes[name] for name in ("num_heads", "num_kv_heads", "head_dim")})
