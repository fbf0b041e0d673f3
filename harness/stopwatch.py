"""One provider on a few draws of a case: calls to time one by one, and what the timed calls returned.

It is made in the process that is timed: here, or by a worker in its own, which is stopped while it is not its turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import placed
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.worker import Worker

# Each form of a call (<op>, <op>_out) is tried so long, in seconds, before the faster one is timed.
TRIAL = 0.02

# A sample is the fastest of so many runs: another process that takes a core for a while lengthens one of them.
RUNS = 3

Clock = Callable[[], float]


class Timed(Protocol):
    """What can be timed in turns with another."""

    def start(self) -> str:
        """Choose the faster form of the call and name it."""
        ...

    def sample(self, calls: int) -> float:
        """Seconds of so many calls, the draws in turn, at the fastest of a few runs."""
        ...

    def outputs(self, draw: int) -> Outputs:
        """What the last timed call on a draw returned, then the inputs that it wrote."""
        ...


class Stopwatch:
    """Times a provider in this process."""

    def __init__(
        self, provider: Provider, cases: Sequence[str], variant: str = "", clock: Clock = time.perf_counter
    ) -> None:
        self._provider, self._variant, self._clock = provider, variant, clock
        drawn = [Case.from_json(case) for case in cases]
        self._op = find_op(drawn[0].op)
        # Drawn for one use: unlike a judge's, nobody keeps them.
        self._arguments = [placed(self._op.inputs(case, Bits(case)), provider) for case in drawn]
        # What a call writes is put back before each sample, so that every sample starts from the same state.
        self._written = [{name: given[name].clone() for name in self._op.mutates} for given in self._arguments]
        self._returned: list[Any] = [None] * len(drawn)
        self._actions: list[Callable[[], Any]] = []
        self._turns: Iterator[tuple[int, Callable[[], Any]]] = iter(())

    def start(self) -> str:
        with self._provider.enter(self._variant):
            forms = self._forms()
            for actions in forms.values():
                self._time(actions)
                self._run(len(actions))
            found = {name: self._trial(actions) for name, actions in forms.items()}
        name = min(found, key=found.__getitem__)
        self._time(forms[name])
        return name

    def sample(self, calls: int) -> float:
        self._restore()
        with self._provider.enter(self._variant):
            # Threads wake and caches fill before the clock starts.
            self._run(1)
            return min(self._run(calls) for _ in range(RUNS))

    def outputs(self, draw: int) -> Outputs:
        if self._op.mutates:
            self._restore()
            with self._provider.enter(self._variant):
                self._returned[draw] = self._actions[draw]()
        return outputs_of(self._op, self._returned[draw], self._arguments[draw])

    def _time(self, actions: list[Callable[[], Any]]) -> None:
        self._actions, self._turns = actions, cycle(enumerate(actions))

    def _run(self, calls: int) -> float:
        turns = list(islice(self._turns, calls))
        returned, start = self._returned, self._clock()
        for draw, action in turns:
            returned[draw] = action()
        return self._clock() - start

    def _trial(self, actions: list[Callable[[], Any]]) -> float:
        """Median seconds of a call."""
        self._time(actions)
        samples: list[float] = []
        until = time.perf_counter() + TRIAL
        while len(samples) < 3 or time.perf_counter() < until:
            self._restore()
            samples.append(self._run(len(actions)))
        return statistics.median(samples) / len(actions)

    def _restore(self) -> None:
        for given, written in zip(self._arguments, self._written, strict=True):
            for name, before in written.items():
                given[name].copy_(before)

    def _forms(self) -> dict[str, list[Callable[[], Any]]]:
        """``<op>`` and, where the provider has it, ``<op>_out`` into memory that the first one showed the shape of."""
        op = self._op
        function, into = self._provider.function(op.name), self._provider.functions(f"{op.name}_out")
        forms = {op.name: [op.bind(function, given) for given in self._arguments]}
        if into is not None:
            made = [as_outputs(action()) for action in forms[op.name]]
            self._restore()
            pairs = zip(self._arguments, made, strict=True)
            forms[f"{op.name}_out"] = [into_memory(op, into, given, outputs) for given, outputs in pairs]
        return forms


def into_memory(
    op: Op, function: Callable[..., Any], given: dict[str, Any], outputs: Sequence[Tensor]
) -> Callable[[], Any]:
    """``<op>_out`` on memory of its own; what it returns is that memory."""
    memory = tuple(torch.empty_like(o) for o in outputs)
    action = op.bind(function, given, memory)

    def call() -> Any:
        action()
        return memory

    return call


def as_outputs(value: Any) -> tuple[Tensor, ...]:
    """Returned tensors as a tuple."""
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(v for v in values if isinstance(v, Tensor))


class Remote:
    """A stopwatch in a worker's process, which stands still but for its own turns."""

    def __init__(self, worker: Worker, cases: Sequence[str], variant: str = "") -> None:
        self._worker = worker
        factory = "minimax_m2.harness.stopwatch:Stopwatch"
        self._made = worker.make(factory, cases=list(cases), variant=variant)
        worker.rests = True

    def start(self) -> str:
        return str(self._worker.invoke(self._made, "start"))

    def sample(self, calls: int) -> float:
        return float(self._worker.invoke(self._made, "sample", calls=calls))

    def outputs(self, draw: int) -> Outputs:
        return tuple(self._worker.invoke(self._made, "outputs", draw=draw))
