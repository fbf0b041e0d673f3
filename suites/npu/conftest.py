"""A lane of its own, which CI runs beside `make test`: collected where its folder is named."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these suites out of a run over all of them: `pytest suites/npu` asks for them."""
    return None if any("npu" in str(argument) for argument in config.args) else True
