"""Run some functions of an engine's Python file without importing the engine.

A file of an engine imports the engine, which needs packages and services that a comparison has no use for. The
functions that are named are taken from it word for word, in their order, and run beside what stands for the rest of
their module.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def excerpt(files: Mapping[Path, Sequence[str]], *, head: str, given: Mapping[str, Any]) -> ModuleType:
    """A module of the functions named for each file, after the lines ``head``, which import what they need.

    given  further names of their module, by what stands for them

    It lies in a file of its own, since Triton reads the source of its kernels. Raises LookupError for a name that the
    file does not define.
    """
    source = "\n\n".join([head, *(text for path, names in files.items() for text in definitions(path, names))])
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    place = Path(tempfile.mkdtemp(prefix="minimax_m2_excerpt_")) / f"excerpt_{digest}.py"
    place.write_text(source)
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    vars(module).update(given)
    spec.loader.exec_module(module)
    return module


def definitions(path: Path, names: Sequence[str]) -> list[str]:
    """The text of each function of a file, decorators included."""
    text = path.read_text()
    lines = text.splitlines()
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in names if name not in found]
    if missing:
        raise LookupError(f"{path} defines no {missing[0]}; is it of another version?")
    chosen = (found[name] for name in names)
    return ["\n".join(lines[_first(node) - 1 : node.end_lineno]) for node in chosen]


def _first(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
