"""Where what a functional op returns lies in memory: in rows that can be read on, and on nothing else.

A kernel that returns a view of its input, or two outputs over each other, is right until somebody writes to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.op import Op
from minimax_m2.harness.verdict import Outcome

Named = tuple[str, Tensor]


class Misplaced(RuntimeError):
    """An output whose numbers may be right lies where it must not; ``outcome`` says how."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def demand_layout(op: Op, returned: Any, inputs: Iterable[Any]) -> None:
    """Raise Misplaced unless every returned tensor has memory of its own and the strides that the op asks for.

    returned  a tensor or a tuple of them; what is no tensor is not looked at
    inputs    the arguments; tensors inside tuples (packed values) count
    """
    values = returned if isinstance(returned, tuple | list) else (returned,)
    names = (name for name in op.outputs if name not in op.mutates)
    outputs = [(name, value) for name, value in zip(names, values, strict=False) if isinstance(value, Tensor)]
    fault = shared(outputs, list(_tensors(inputs)))
    if fault is not None:
        raise Misplaced(Outcome.ALIASED, fault)
    for name, output in outputs:
        if name in op.contiguous and not output.is_contiguous():
            raise Misplaced(Outcome.WRONG_LAYOUT, f"{name} has strides {list(output.stride())}, expected contiguous")
        if output.numel() and output.shape[-1:] > (1,) and output.stride(-1) != 1:
            raise Misplaced(
                Outcome.WRONG_LAYOUT,
                f"{name} has strides {list(output.stride())}, expected a contiguous last dimension",
            )


def demand_own_memory(op: Op, returned: Any, before: Any) -> None:
    """Raise Misplaced if what a call returned lies on what the call before it did, which its caller still holds.

    A kernel that writes every result to one buffer is right until somebody calls it again.
    """
    held = list(_tensors((before,)))
    if any(overlap(output, earlier) for output in _tensors((returned,)) for earlier in held):
        told = f"a second call writes over the first one's result; only {op.name}_out writes where it is told"
        raise Misplaced(Outcome.ALIASED, told)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def shared(outputs: Sequence[Named], inputs: Sequence[Tensor]) -> str | None:
    """Say which output lies on itself, on an input or on another output; None where each has its own memory.

    Exact to the byte: interleaved rows of one buffer share nothing.
    """
    for place, (name, output) in enumerate(outputs):
        if _lies_on_itself(output):
            return f"{name} has strides {list(output.stride())}: several of its elements lie in one place"
        if any(overlap(output, tensor) for tensor in inputs):
            return f"{name} lies on an input: writing to one changes the other"
        for other, tensor in outputs[:place]:
            if overlap(output, tensor):
                return f"{name} lies on {other}: writing to one changes the other"
    return None


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have a byte in common."""
    if a.device != b.device or 0 in (a.numel(), b.numel()):
        return False
    (first, last), (other_first, other_last) = _span(a), _span(b)
    return first < other_last and other_first < last and bool(torch.isin(_addresses(a), _addresses(b)).any())


def _lies_on_itself(x: Tensor) -> bool:
    if 0 in (stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        return x.numel() > 0
    # Rows in order, each behind the one before, as nearly every tensor has them, need no count.
    return not x.is_contiguous() and x.numel() > 0 and len(_addresses(x).unique()) < x.numel() * x.element_size()


def _span(x: Tensor) -> tuple[int, int]:
    """Address of the first byte, and of the one behind the last."""
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (reach + 1) * x.element_size()


def _addresses(x: Tensor) -> Tensor:
    """The address of every byte, int64."""
    found = torch.tensor([x.data_ptr()])
    for size, stride in zip(x.shape, x.stride(), strict=True):
        found = (found[:, None] + torch.arange(size) * (stride * x.element_size())).flatten()
    return (found[:, None] + torch.arange(x.element_size())).flatten()
