"""Suites that CI runs as lanes of their own, beside `make test`: collected only where their folder is named."""

from __future__ import annotations

from pathlib import Path

import pytest

LANES = ("drift", "history", "npu", "parallel")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a lane out of a run over all suites: `pytest suites/parallel` asks for it."""
    place = collection_path.relative_to(Path(__file__).parent).parts[:1]
    if place not in {(lane,) for lane in LANES}:
        return None
    lane = Path(__file__).with_name(place[0])
    asked = (config.invocation_params.dir / str(argument).partition("::")[0] for argument in config.args)
    return None if any(lane == path.resolve() or lane in path.resolve().parents for path in asked) else True
