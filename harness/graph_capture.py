"""Whether an op can serve a captured graph: eager, replayed, replayed on other values and compiled, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.cuda_graph import captured
from minimax_m2.harness.judge import build, call
from minimax_m2.harness.op import Op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of

# Where our ops change their code path, and sizes that serving engines capture.
THRESHOLDS = (1, 2, 3, 4, 5, 8, 9, 32, 33, 64, 65)


def sizes(op: Op, *, tokens: Iterable[int] = THRESHOLDS) -> list[Case]:
    """An op's decode case at these numbers of tokens, no wider than 512 channels; as it is where it has no T."""
    fields = {name: min(int(value), 512) if name in "HI" else value for name, value in op.shapes["decode"].items()}
    if "T" not in op.factors:
        return [op.case(**fields)]
    return [op.case(**fields | {"T": count}) for count in tokens]


def capture_failures(
    op: Op, cases: Iterable[Case], provider: Provider, *, backend: str = "inductor"
) -> Iterator[tuple[str, str]]:
    """Yield ``(way, evidence)`` for every way that a provider on a GPU fails on a case, the sizes one after the other.

    graph     one call is captured; a call that waits for the device cannot be. Its replay gives the bits of eager
    changed   other values are copied into the same memory: the replay gives their bits, not remembered ones
    compiled  ``torch.compile(fullgraph=True, dynamic=True)``, once for all sizes: no branch is frozen at the first
    """
    function = provider.function(op.name)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for case in cases:
        first = build(op, case, provider)
        second = _other_values(op, case, provider, first)
        hosted = {name: max(first[name], second[name]) for name in first if name.startswith("max_")}
        expected = [_eager(op, function, deepcopy(values) | hosted) for values in (first, second)]
        for way, run in (
            ("graph", lambda: _replayed(op, function, deepcopy(first) | hosted, first)),  # noqa: B023 - called at once
            ("changed", lambda: _replayed(op, function, deepcopy(first) | hosted, second)),  # noqa: B023
            ("compiled", lambda: _eager(op, compiled, deepcopy(first) | hosted)),  # noqa: B023
        ):
            try:
                found = run()
            except Exception as error:  # what a capture or a compiler refuses is the finding
                torch.cuda.synchronize()
                yield way, f"{case.json}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            wrong = _differing(found, expected[way == "changed"])
            if wrong:
                yield way, f"{case.json}: {wrong}"


def _other_values(op: Op, case: Case, provider: Provider, first: dict[str, Any]) -> dict[str, Any]:
    """Another draw of the case; where that has other shapes (lengths are drawn too), the same with halved numbers."""
    fields = {name: value for name, value in case.items() if name != "op"}
    second = build(op, op.case(**fields | {"seed": case.number("seed") + 1}), provider)
    if all([x.shape for x in _tensors(second[name])] == [x.shape for x in _tensors(first[name])] for name in first):
        return second
    halved = deepcopy(first)
    for value in halved.values():
        for x in _tensors(value):
            if x.dtype in (torch.float32, torch.bfloat16, torch.float16):
                x.mul_(0.5)
    return halved


def _eager(op: Op, function: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    return [output.clone() for output in outputs_of(op, call(op, function, arguments), arguments)]


def _replayed(
    op: Op, function: Callable[..., Any], arguments: dict[str, Any], values: Mapping[str, Any]
) -> list[Tensor]:
    """Call on ``arguments`` to warm up, capture, bring their memory to ``values``, spoil the outputs, replay."""
    call(op, function, arguments)
    graph, returned = captured(lambda: call(op, function, arguments))
    outputs = outputs_of(op, returned, arguments)
    for output in outputs[: len(outputs) - len(op.mutates)]:
        _bytes(output).fill_(0xFF)
    for name, value in values.items():
        for target, source in zip(_tensors(arguments[name]), _tensors(value), strict=True):
            target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    return [output.clone() for output in outputs]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [each for part in value for each in _tensors(part)] if isinstance(value, tuple) else []


def _differing(found: list[Tensor], expected: list[Tensor]) -> str:
    """Name the first output whose bits differ, or nothing."""
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(_bytes(one), _bytes(other)):
            count = int((_bytes(one) != _bytes(other)).sum())
            return f"output {place} differs from eager in {count} of {_bytes(one).numel()} bytes"
    return ""


def _bytes(x: Tensor) -> Tensor:
    """The bytes of a dense tensor, in place; of a strided one, a copy's."""
    return x.contiguous().reshape(-1).view(torch.uint8)
