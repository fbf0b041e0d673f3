"""Workflows fit GitHub's schema, and what they run stands in this tree."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What a machine without accelerator, a self-hosted one and GitHub's own have.
FOUND_THERE = {"mkdir", "python3", "sudo"}


def unfit(workflow: Path) -> str:
    """How a workflow breaks GitHub's own schema, or nothing; the schema comes with its checker."""
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    done = subprocess.run(schema, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stdout


def missing(workflow: str, targets: set[str]) -> list[str]:
    """Commands of a workflow that are no script of this tree, no target of its Makefile and no program of a machine."""
    # Machines with a GPU or an NPU collect this file, too, and lack the parser.
    from ruamel.yaml import YAML

    return [command for command in _commands(YAML(typ="safe").load(workflow)) if not _is_known(command, targets)]


def _commands(loaded: dict[str, Any]) -> Iterator[str]:
    for job in loaded["jobs"].values():
        for step in job["steps"]:
            yield from (part.strip() for part in re.split(r"&&|\n", step.get("run", "")) if part.strip())


def _is_known(command: str, targets: set[str]) -> bool:
    program, *given = shlex.split(command)
    if program == "make":
        return set(word for word in given if "=" not in word) <= targets
    if "/" in program:
        path = ROOT / program
        return path.is_file() and bool(path.stat().st_mode & 0o100)
    return program in FOUND_THERE


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_can_run(workflow: Path) -> None:
    assert unfit(workflow) == ""
    assert missing(workflow.read_text(), make_targets()) == []


BROKEN = """
name: broken
on: push
jobs:
  one:
    runs-on: ubuntu-latest
    timeout-minute: 5
    steps:
      - run: make venv && ci/nowhere.sh
      - run: make nothing
      - run: |
          ci/lint.sh
          frobnicate --all
"""


def test_a_broken_workflow_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text(BROKEN)
    assert "timeout-minute" in unfit(tmp_path / "broken.yml")
    assert missing(BROKEN, make_targets()) == ["ci/nowhere.sh", "make nothing", "frobnicate --all"]
