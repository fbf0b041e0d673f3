"""What tests of kernels share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def interpreted(tmp_path: Path) -> Callable[[str], None]:
    """Run a program in Triton's interpreter, in a process of its own; it prints ``done`` where all is right."""

    def run(source: str) -> None:
        # Triton reads the source of a kernel from its file.
        file = tmp_path / "interpreted.py"
        file.write_text(source)
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(file)], capture_output=True, text=True, env=environment, check=False
        )

        assert done.stdout == "done\n", (done.returncode, done.stdout + done.stderr[-2000:])

    return run
