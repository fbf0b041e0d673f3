"""How much a sum over ranks hangs on who brought which part: the bits, no more than its budget, or the result.

A sum that is called again on the same parts should have the same bits; one whose parts come from other ranks is added
in another order, and may differ by as much as its roundings allow. A deployment that moves ranks about keeps the bits
of its outputs only where both have the grade ``bits``.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from minimax_m2.reference.communicator import Communicator

# What a layer of MiniMax-M2 sums, for a few tokens: the statistics of q and k, and rows of the model's width.
SUMS = {
    "statistics float32": ((64, 2), torch.float32),
    "rows float32": ((16, 3072), torch.float32),
    "rows bfloat16": ((16, 3072), torch.bfloat16),
}
SEED = 5


class Grade(Enum):
    """What two sums of the same parts have in common."""

    BITS = "bits"
    BUDGET = "budget"
    WRONG = "wrong"


def order_grades(communicator: Communicator, *, device: str = "cpu") -> dict[str, dict[str, str]]:
    """Grade every sum of ``SUMS``, ``repeated`` and ``turned``: rank r brings the part of rank r + 1.

    All ranks call it, and each returns what it saw.
    """
    found = {}
    for number, (name, (shape, dtype)) in enumerate(SUMS.items()):
        generator = torch.Generator().manual_seed(SEED + number)
        parts = [torch.randn(shape, generator=generator).to(dtype) for _ in range(communicator.size)]
        own, next_ = (parts[(communicator.rank + turn) % communicator.size].to(device) for turn in (0, 1))
        first, again, turned = (communicator.all_reduce(part, label=name).cpu() for part in (own, own, next_))
        found[name] = {"repeated": _grade(again, first, parts).value, "turned": _grade(turned, first, parts).value}
    return found


def _grade(actual: Tensor, first: Tensor, parts: list[Tensor]) -> Grade:
    """Hold a sum against every order that it may have had: n - 1 roundings, each of a sum of some of its terms.

    |actual - sum| <= (n - 1) u sum |parts| (1 + (n - 1) u), u the unit roundoff of the dtype
    """
    terms = torch.stack(parts).to(torch.float64)
    unit, roundings = torch.finfo(actual.dtype).eps / 2, len(parts) - 1
    bound = roundings * unit * terms.abs().sum(0) * (1 + roundings * unit)
    if not bool(((actual.to(torch.float64) - terms.sum(0)).abs() <= bound).all()):
        return Grade.WRONG
    return Grade.BITS if torch.equal(actual, first) else Grade.BUDGET
