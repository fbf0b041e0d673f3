"""A dense product whose sum is cut into parts reads its rows and nothing behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; the levels G0 and G1 are not here")

# 48 tiles and 12 steps: five parts of three steps would be one too many.
SOURCE = """
import torch
from minimax_m2.kernels.gpu.linear import linear

g = torch.Generator().manual_seed(0)
x, weight = (torch.randn(rows, 384, generator=g) for rows in (8, 48 * 64))
y, right = linear(x, weight), x.double() @ weight.double().mT
print("done" if (y - right).norm() < 1e-6 * right.norm() else (y - right).abs().max())
"""


@pytest.mark.gpu
def test_no_part_lies_behind_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "dense.py"
    file.write_text(SOURCE)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(file)], capture_output=True, text=True, env=environment, check=False
    )

    assert done.stdout == "done\n", done.stdout + done.stderr[-2000:]
