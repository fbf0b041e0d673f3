"""One provider on a GPU: a CUDA graph of many calls on rotated arguments, replayed in turns with another's.

Both contenders live in this process: nothing runs on the GPU but the replays of the one whose turn it is. Each set of
arguments and each call's outputs have memory of their own, together several times the second-level cache, so a call
finds its inputs there only where all sets are small, as it does in a model after the kernel that wrote them.

An engine may work in place on what an op promises to keep, or leave an output where it lies. A provider that offers
``<op>_in_place`` is timed so: what a timed call returns is then that of one more round, on inputs that are put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.cuda_graph import captured, on_a_stream, replay_seconds
from minimax_m2.harness.devices import torch_device
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.graph_timing import sets_for
from minimax_m2.harness.judge import moved
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import placed
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.stopwatch import as_outputs, into_memory

# A replay lasts so long at least, in seconds, or the events around it would weigh.
REPLAY = 2e-4
# From so many bytes on a drawn tensor is moved to the device once for all that draw the same.
SHARED = 1 << 28
IN_PLACE = "_in_place"


class Uncapturable(RuntimeError):
    """A provider raised while its calls were made or captured; the message says who and what."""


class GraphStopwatch:
    """Times a provider by replays of one graph."""

    def __init__(self, provider: Provider, op: Op, cases: Sequence[Case], variant: str = "") -> None:
        self._provider, self._op, self._variant = provider, op, variant
        device = torch_device(provider.device)
        self._drawn = [brought(op.inputs(case, Bits(case)), device) for case in cases]
        first = [placed(given, provider) for given in self._drawn]
        count = max(len(first), sets_for(op.cost(cases[0]).bytes))
        self._sets = [first[i] if i < len(first) else deepcopy(first[i % len(first)]) for i in range(count)]
        self._written = [{name: given[name].clone() for name in op.mutates} for given in self._sets]
        self._graph: Any = None
        self._returned: list[Any] = []
        self._calls = 0
        self._form = op.name

    def start(self) -> str:
        """Capture each form of the call, choose the faster one and name it.

        Raises Uncapturable: a call that waits for the device cannot serve a captured graph.
        """
        try:
            return self._started()
        except Exception as error:  # whatever the provider's code raises is the finding
            told = str(error).strip().splitlines() or [""]
            raise Uncapturable(f"{self._provider.name} raised {type(error).__name__}: {told[0]}") from error

    def _started(self) -> str:
        found: dict[str, tuple[float, Any]] = {}
        with self._provider.enter(self._variant):
            for name, actions in self._forms().items():
                self._capture(actions, 1)
                once = self._replayed(1)
                self._capture(actions, math.ceil(REPLAY / max(once, 1e-7)))
                self._replayed(1)
                found[name] = self._replayed(1) / self._calls, (self._graph, self._returned, self._calls)
        name = min(found, key=lambda form: found[form][0])
        self._graph, self._returned, self._calls = found[name][1]
        self._form = name
        return name

    def sample(self, calls: int) -> float:
        replays = math.ceil(calls / self._calls)
        return self._replayed(replays) / (replays * self._calls) * calls

    def outputs(self, draw: int) -> Outputs:
        """What a replay of the timed graph writes into memory that held 0xFF in every byte."""
        if self._form.endswith(IN_PLACE):
            return self._anew(draw)
        for given, written in zip(self._sets, self._written, strict=True):
            for name, before in written.items():
                given[name].copy_(before)
        values = as_outputs(self._returned[draw])
        for value in values:
            spoilt = torch.empty(value.shape, dtype=value.dtype, device=value.device)
            spoilt.view(torch.uint8).fill_(0xFF)
            value.copy_(spoilt)
        self._replayed(1)
        return outputs_of(self._op, values, self._sets[draw])

    def _anew(self, draw: int) -> Outputs:
        """What the form in place returns on the draw's own inputs."""
        function = self._provider.function(self._form)
        with self._provider.enter(self._variant):
            return as_outputs(self._op.bind(function, placed(deepcopy(self._drawn[draw]), self._provider))())

    def given(self, draw: int) -> dict[str, Any]:
        """The arguments of a draw as they were drawn, on the device, with what is to be packed unpacked."""
        return self._drawn[draw]

    def _capture(self, actions: Sequence[Callable[[], Any]], rounds: int) -> None:
        def run() -> list[Any]:
            # All results of a round are held, or they would share memory that is still in the cache.
            held: list[Any] = []
            for _ in range(rounds):
                held = [action() for action in actions]
            return held

        # Compilation and lazy set-up happen outside the graph.
        on_a_stream(lambda: [action() for action in actions])
        self._graph, self._returned = captured(run)
        self._calls = rounds * len(actions)

    def _replayed(self, replays: int) -> float:
        return replay_seconds(self._graph, replays)

    def _forms(self) -> dict[str, list[Callable[[], Any]]]:
        op, provider = self._op, self._provider
        function, into = provider.function(op.name), provider.functions(f"{op.name}_out")
        forms = {op.name: [op.bind(function, given) for given in self._sets]}
        if into is not None:
            made = [as_outputs(action()) for action in forms[op.name]]
            pairs = zip(self._sets, made, strict=True)
            forms[f"{op.name}_out"] = [into_memory(op, into, given, outputs) for given, outputs in pairs]
        if (in_place := provider.functions(op.name + IN_PLACE)) is not None:
            forms[op.name + IN_PLACE] = [op.bind(in_place, deepcopy(given)) for given in self._sets]
        return forms


_shared: dict[int, tuple[Tensor, Tensor]] = {}


def brought(value: Any, device: str) -> Any:
    """Drawn arguments on a device; what is packed later keeps its names."""
    if isinstance(value, dict):
        return {name: brought(each, device) for name, each in value.items()}
    if isinstance(value, Pack):
        return Pack(value.function, brought(value.arguments, device))
    if not isinstance(value, Tensor):
        return value
    if value.untyped_storage().nbytes() < SHARED:
        return moved(value, device)
    if value.data_ptr() not in _shared:
        # Weights of one kind: gate and up, and down.
        for key in list(_shared)[:-1]:
            del _shared[key]
        _shared[value.data_ptr()] = (value, moved(value, device))
    return _shared[value.data_ptr()][1]
