"""A dense product whose sum is cut into parts reads its rows and nothing behind them."""

from __future__ import annotations

from collections.abc import Callable

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
def test_no_part_lies_behind_the_rows(interpreted: Callable[[str], None]) -> None:
    interpreted(SOURCE)
