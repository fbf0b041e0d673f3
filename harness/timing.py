"""Time a provider on a case whose outputs have just been verified."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import chain

from minimax_m2.harness.case import Case
from minimax_m2.harness.graph_timing import replayed, sets_for
from minimax_m2.harness.judge import blank, build, expected
from minimax_m2.harness.op import Op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Timing
from minimax_m2.harness.roofline import Roof

SHORTEST_SAMPLE = 200e-6
ROUNDS = 3


def time_case(op: Op, shape: str, provider: Provider, variant: str, roof: Roof, *, budget: float = 0.03) -> Timing:
    """Median and best time of the faster of ``<op>`` and ``<op>_out`` within ``budget`` seconds each.

    Inputs are warm on a CPU. On a GPU a graph of calls is replayed over so many inputs that none is in the cache.
    Judge the case first: a time of wrong outputs is not a time of the op.
    """
    case = op.shape(shape)
    with provider.enter(variant):
        if provider.device == "gpu":
            sets = [actions(op, case, provider) for _ in range(sets_for(op.cost(case).bytes))]
            calls = {name: [action for name_, action in chain(*sets) if name_ == name] for name, _ in sets[0]}
            found = {name: replayed(each, budget=budget) for name, each in calls.items()}
        else:
            found = {name: _sampled(action, budget) for name, action in actions(op, case, provider)}
    name, samples = min(found.items(), key=lambda item: statistics.median(item[1]))
    cost = op.cost(case)
    dtype = case.word("dtype") if "dtype" in case else "float32"
    return Timing(
        shape=shape,
        call=name,
        median_us=statistics.median(samples) * 1e6,
        best_us=min(samples) * 1e6,
        calls=len(samples),
        bytes=cost.bytes,
        flops=cost.flops,
        roof_us=roof.seconds(cost, dtype) * 1e6,
        clock="graph" if provider.device == "gpu" else "loop",
    )


def actions(op: Op, case: Case, provider: Provider) -> list[tuple[str, Callable[[], object]]]:
    """The calls that may be timed, ``<op>_out`` last where the provider has it, on arguments built and bound once."""
    arguments = build(op, case, provider)
    function, into = provider.function(op.name), provider.functions(f"{op.name}_out")
    actions: list[tuple[str, Callable[[], object]]] = [(op.name, op.bind(function, arguments))]
    if into is not None:
        right, _ = expected(op, case, provider.contract.get(op.name, {}))
        outputs = blank(op, right, provider)
        actions.append((f"{op.name}_out", op.bind(into, arguments, outputs)))
    return actions


def _sampled(action: Callable[[], object], budget: float) -> list[float]:
    """Seconds a call, of the quietest of three rounds: what disturbs a round, another process say, only adds to it.

    Calls shorter than 200 us are timed in loops that last so long. A call that outlasts the budget is timed once.
    """
    action()
    once = _looped(action, 1)
    if once >= budget:
        return [once]
    loops = max(1, int(SHORTEST_SAMPLE / max(once, 1e-7)))
    rounds = []
    for _ in range(ROUNDS):
        samples: list[float] = []
        until = time.perf_counter() + budget / ROUNDS
        while not samples or time.perf_counter() < until:
            samples.append(_looped(action, loops))
        rounds.append(samples)
    return min(rounds, key=statistics.median)


def _looped(action: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        action()
    return (time.perf_counter() - start) / loops
