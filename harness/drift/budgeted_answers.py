"""Right models in float32: what a step returns errs at random as its contract's budget allows.

Of a model in 16 bits the rounding of each result is nearly all of its error. In float32 the additions within a sum err
as much as that, so a right model's steps err as far as the budget of their contract foresees: independent errors apart,
those that a row or a column has in common together. Budgets foresee the least favourable order of a sum, so kernels
that add in many lanes and say nothing of it stray less than these models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.drift.answers import Answer
from minimax_m2.harness.drift.calls import Call, described, only_active
from minimax_m2.harness.expectation import Expectation, Tensors, expectation
from minimax_m2.harness.op import Declared
from minimax_m2.harness.shrink import given
from minimax_m2.harness.ties import Choice

Declares = Callable[[Call], Declared]
"""Where the kernel of a call rounds."""


def budgeted_answers(declares: Declares, seed: int) -> Answer:
    """Each step's result beside the formula by an error that is drawn from its budget."""
    dice = torch.Generator().manual_seed(seed)

    def answers(call: Call) -> Any:
        case = described(call)
        contract = call.op.full_contract(case, declares(call))
        right = expectation(given(call.op, only_active(call).arguments), case, contract)
        found = dict(zip(call.op.outputs, _results(right, dice), strict=True))
        for name in call.op.mutates:
            target: Tensor = call.arguments[name]
            target.copy_(found.pop(name).to(target.dtype))
        values = tuple(found.values())
        return None if not values else values[0] if len(values) == 1 else values

    return answers


def _results(right: Expectation, dice: torch.Generator) -> tuple[Tensor, ...]:
    """One result of each output, in its dtype; of a router the experts that the formula chooses."""
    draw = _Draw(dice)
    if isinstance(right, Choice):
        weights, ids = right.perfect()
        return draw(right.weigh(ids.long())).to(weights.dtype), ids
    assert isinstance(right, Tensors), f"{right.op.name} has no budget of tensors"
    return tuple(draw(x).to(right.dtypes[name]) for name, x in right.expected.items())


class _Draw:
    """Draws errors of the outputs of one call, which may have some in common."""

    def __init__(self, dice: torch.Generator) -> None:
        self._dice = dice
        self._common: dict[int, Tensor] = {}

    def __call__(self, x: Budgeted | Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return x
        error = x.var.sqrt() * self._normal(x.value.shape)
        for part in x.shared:
            error = error + part.coef * self._of(part.source, part.label)
        return x.value + error.clamp(-x.bound, x.bound)

    def _of(self, source: int, label: Tensor) -> Tensor:
        known = self._common.get(source, torch.empty(0, dtype=torch.float64))
        more = int(label.max()) + 1 - len(known) if label.numel() else 0
        if more > 0:
            known = self._common[source] = torch.cat([known, self._normal((more,))])
        return known[label]

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._dice, dtype=torch.float64)
