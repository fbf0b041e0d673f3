"""Say how to install when the suites run without the package; the rest is the plugin's.

The plugin `minimax_m2.harness.pytest_plugin` loads by its `pytest11` entry point, here and in an empty folder alike.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if find_spec("minimax_m2") is None:
        raise pytest.UsageError(
            "minimax_m2 is not installed in this Python; run `make test`, "
            "or `pip install -e . --no-deps --no-build-isolation` where torch is already there"
        )
