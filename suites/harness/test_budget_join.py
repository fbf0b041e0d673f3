"""A value that holds one source of error twice keeps both shares when it is joined with others."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.budget import Budgeted


def test_a_join_keeps_both_errors_of_a_rotated_pair() -> None:
    x: Any = Budgeted.exact(torch.tensor([[1 / 3, 1 / 7]])) * (4505 / 4096)
    # Copies share the errors of their elements: one source, two labels.
    first, second = x.repeat(3, 1).chunk(2, -1)
    turned = first * 0.25 - second * 0.5
    joined: Any = torch.cat([turned, first], -1)
    assert bool((turned.sigma > 0.25 * first.sigma).all())
    assert torch.equal(joined.sigma[:, :1], turned.sigma)
    assert torch.equal(joined.sigma[:, 1:], first.sigma)
