"""One call of an op in guarded memory, and the same call again in other poison.

Tensors of more than ``arena.LARGEST`` bytes are not copied between red zones, nor those of packed values, which are
their provider's own, who may know them by their address: of those only the bytes are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.arena import LARGEST, NAN, Guard, Poison, allocations, difference, span
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.devices import synchronise, torch_device
from minimax_m2.harness.expectation import Expectation, Outputs, Tensors
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.op import Op
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.verdict import Outcome

Invoke = Callable[[dict[str, Any], list[Tensor]], Any]


class Watched:
    """Arguments between red zones, with outputs to be written where ``right`` is given, for one call.

    Nobody writes to ``arguments`` but the call does to its copy, so they serve for the next one; those that stay where
    they are must be built anew where the op writes them.
    """

    def __init__(
        self,
        op: Op,
        arguments: dict[str, Any],
        *,
        device: str = "cpu",
        poison: Poison = NAN,
        right: Expectation | None = None,
    ) -> None:
        self._op, self._device, self._poison = op, device, poison
        small = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and span(v) <= LARGEST}
        returned = [] if right is None else [name for name in right.dtypes if name not in op.mutates]
        outputs = {f"output {name}": (right.shapes[name], right.dtypes[name]) for name in returned} if right else {}
        self._guard = Guard(small, writable=op.mutates, outputs=outputs, device=torch_device(device), poison=poison)
        self.arguments = {name: self._guard[name] if name in small else v for name, v in arguments.items()}
        self.outputs = [self._guard[name] for name in outputs]
        for output in self.outputs:
            if poison is NAN and not output.is_floating_point():
                # -1, which the bytes of NaN are, may be right.
                output.fill_(torch.iinfo(output.dtype).max)
        unguarded = {name: value for name, value in tensors(arguments) if name not in small and name not in op.mutates}
        self._unguarded = {name: (value, raw(value).clone()) for name, value in unguarded.items()}

    def call(self, invoke: Invoke) -> Outputs:
        """What the call returned or wrote to its outputs, then the inputs that it is to write."""
        with allocations(self._poison.allocated, self._device):
            self.returned = invoke(self.arguments, self.outputs)
        synchronise(self._device)
        return outputs_of(self._op, tuple(self.outputs) or self.returned, self.arguments)

    def written(self) -> str:
        """Name of an input that the call wrote to, or nothing; raises Misplaced for a write outside of any tensor."""
        changed = (name for name, (value, before) in self._unguarded.items() if not torch.equal(raw(value), before))
        return self._guard.written() or next(changed, "")


def built_anew(op: Op, arguments: dict[str, Any]) -> bool:
    """Whether a call writes to the arguments themselves, not to a copy."""
    return any(span(arguments[name]) > LARGEST for name in op.mutates)


def demand_independence(right: Expectation, first: Outputs, second: Outputs, repeat: Callable[[], Outputs]) -> None:
    """Raise Misplaced where two results of right shapes differ because memory that nobody owns did.

    ``repeat`` makes the first call once more: who gives other bits then, too, says nothing about memory.
    """
    host, other = [tuple(o.detach().cpu() for o in outputs) for outputs in (first, second)]
    sure = [certain_elements(right, name) for name in right.dtypes]
    told = difference(list(right.dtypes), host, other, sure)
    if not told or difference(list(right.dtypes), host, [o.detach().cpu() for o in repeat()], sure):
        return
    what = "read what it was not given, or what nobody wrote"
    raise Misplaced(Outcome.OUTSIDE, f"{what}: {told}, as memory that nobody owns holds NaN, then large numbers")


def certain_elements(right: Expectation, name: str) -> Tensor:
    """Elements of an output that the op specifies, bool."""
    value = right.expected[name] if isinstance(right, Tensors) else None
    if isinstance(value, Budgeted):
        return torch.isfinite(value.value) & torch.isfinite(value.bound)
    return torch.ones(right.shapes[name], dtype=torch.bool)


def tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensor arguments by name; those of a packed value are told apart by field or place."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            places = getattr(value, "_fields", range(len(value)))
            yield from ((f"{name}.{at}", v) for at, v in zip(places, value, strict=True) if isinstance(v, Tensor))


def is_packed(value: Any) -> bool:
    """Whether a value is a tuple that can be made again from its fields: a plain or a named one."""
    return type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_fields"))


def raw(value: Tensor) -> Tensor:
    """The bytes of a tensor's whole storage."""
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage, 0, (storage.nbytes(),), (1,))
