"""Three wrong providers, one for each way to fail a captured graph, are caught; without a GPU, on a graph of torch ops.

The stand-in for a CUDA graph records the ops of a call with their tensors and replays them on the same memory; like a
capture, it refuses to hand a value to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimax_m2.harness.graph_capture import THRESHOLDS, capture_failures, sizes
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider

LINEAR = find_op("linear")


class Graph(TorchDispatchMode):
    """Ops in the order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            if isinstance(out, Tensor):
                out.copy_(again)


@contextmanager
def capturing(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    with graph:
        yield


def ways_failed(monkeypatch: pytest.MonkeyPatch, linear: Callable[..., Tensor]) -> set[str]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    provider = Provider(name="mine", device="cpu", functions={"linear": linear}.get)
    return {way for way, _ in capture_failures(LINEAR, sizes(LINEAR, tokens=(2, 40)), provider, backend="eager")}


def test_a_right_one_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return x @ weight.mT

    assert ways_failed(monkeypatch, linear) == set()


def test_a_call_that_waits_for_the_device_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return x @ weight.mT * (1.0 if float(x.abs().max()) < 1e30 else 0.5)

    assert {"graph", "changed"} <= ways_failed(monkeypatch, waits)


def test_a_remembered_input_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def remembers(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return x @ weight.mT
        # The original is held, so that no other weight gets its address.
        return x @ kept.setdefault(weight.data_ptr(), (weight, weight.clone()))[1].mT

    assert ways_failed(monkeypatch, remembers) == {"changed"}


def test_a_branch_frozen_by_the_compiler_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def branches(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return x @ weight.mT * (2.0 if torch.compiler.is_compiling() else 1.0)

    assert ways_failed(monkeypatch, branches) == {"compiled"}


def test_sizes_lie_on_both_sides_of_every_threshold() -> None:
    drawn = [case.number("T") for case in sizes(LINEAR)]

    assert tuple(drawn) == THRESHOLDS
    assert {2, 3, 8, 9, 32, 33} <= set(drawn)
