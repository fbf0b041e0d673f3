"""A record bisected: each step's own error, as it was recorded, is added to the same step of the formula's run.

An engine that only left a record cannot be run at some places and left out at others. But what a step added to the
float64 formula on the input that it had is known, and a running model's step errs by the same, to first order in how
far the two inputs lie apart. A choice of experts that is not the formula's on that input is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.drift.answers import Answer, exact_answers, formula
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.candidate import Place
from minimax_m2.harness.drift.recorded_calls import Step, left, recorded_steps, unjudged
from minimax_m2.harness.drift.recording import Recording
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.op import Declared
from minimax_m2.harness.returned import shaped_as, values_of

ROUTERS = ("router", "routing")


class Transplant:
    """The errors of a recorded pass, ready to be added to a run of the same tokens, which are one prefill."""

    def __init__(self, subject: Subject, recording: Recording) -> None:
        self._subject, self._recording = subject, recording
        self._errors: dict[Place, tuple[Tensor, ...]] = {}

    @cached_property
    def _steps(self) -> dict[Place, Step]:
        return {
            (step.layer, step.name): step
            for step in recorded_steps(self._subject, self._recording)
            if not unjudged(self._recording, step)
        }

    @property
    def offered(self) -> list[str]:
        """The ops at which taps stand, so that the run has the record's grain; its caches are written apart."""
        return [*dict.fromkeys(step.op for step in self._steps.values()), "kv_cache"]

    def declares(self, call: Call) -> Declared:
        """Where the engine's kernel of a call rounds."""
        return self._recording.naming.contract.get(call.op.name, {})

    def answers(self, where: Callable[[Place], bool]) -> Answer:
        """The formula, with the engine's errors ``where`` they are asked for."""

        def answers(call: Call) -> Any:
            step = self._steps.get(call.place)
            if step is None or not where(call.place):
                return exact_answers(call)
            if call.op.name in ROUTERS:
                return self._chosen(step, call)
            returned = formula(call)
            moved = (
                (value + error).to(kept.dtype)
                for value, error, kept in zip(values_of(returned), self._error(step), self._kept(step), strict=True)
            )
            return shaped_as(returned, moved)

        return answers

    def _kept(self, step: Step) -> tuple[Tensor, ...]:
        return left(self._subject, self._recording, step)

    def _error(self, step: Step) -> tuple[Tensor, ...]:
        """What a step gave, less the formula on its own input."""
        place = (step.layer, step.name)
        if place not in self._errors:
            returned = formula(step.call())
            pairs = zip(self._kept(step), values_of(returned), strict=True)
            self._errors[place] = tuple(kept.double() - value for kept, value in pairs)
        return self._errors[place]

    def _chosen(self, step: Step, call: Call) -> tuple[Tensor, Tensor]:
        """The formula's choice with the engine's errors of the weights; where the engine chose otherwise, its own."""
        (own, named), (kept, ids) = formula(step.call()), self._kept(step)
        weights, chosen = formula(call)
        same = (named.sort(-1).values == ids.sort(-1).values).all(-1, keepdim=True)
        by_expert = own.new_zeros(len(ids), self._subject.config.num_local_experts)
        error = by_expert.scatter(1, ids, kept.double()) - by_expert.scatter(1, named.long(), own)
        moved = weights + error.gather(1, chosen.long())
        return torch.where(same, moved, kept.double()).to(kept.dtype), torch.where(same, chosen, ids.to(chosen.dtype))
