"""A device named ``npu`` without silicon: to torch it is one, and its arithmetic is this CPU's.

Tensors lie on ``npu:0``, a move is a move, an op that is given tensors of two devices raises, and a kernel that is
registered for the device is what its op runs. Nothing here says anything of a card. A name is given to a device once a
process, and ``opcheck`` and ``pin_memory`` fail in that process from then on: it is to be one of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from minimax_m2.harness.npu.launches import Launch

# Ops that carry numbers from one device to the other.
CROSSING = frozenset({"aten::_to_copy", "aten::copy_"})
# Unlike the grid of launchers that find no card: who asks this one gets another number.
VECTOR_CORES = 48

_LIBRARIES: list[Any] = []
DISPATCHED: Counter[str] = Counter()
"""How often each op was dispatched to the device."""


class OnNpu(Tensor):
    """A tensor of ``npu:0``; ``memory`` holds its numbers, which only the device is to see."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> OnNpu:
        made: Any = Tensor._make_wrapper_subclass(
            cls, memory.size(), strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            device=torch.device("npu:0"),
        )  # fmt: skip
        made.memory = memory
        return cast(OnNpu, made)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "PrivateUse1"):
            DISPATCHED[func.name()] += 1
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1), *args, **(kwargs or {}))
        return run(func, *args, **(kwargs or {}))

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.memory.untyped_storage()

    def tolist(self) -> Any:
        return self.memory.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.memory!r} on {self.device}"


class Module:
    """What ``torch.npu`` is. Numbers are drawn by the host's generator, so its state is the device's."""

    is_fake = True

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, device: object = None) -> None:
        """Return: every op has ended when it returns."""

    def manual_seed_all(self, seed: int) -> None:
        """Leave the generator to ``torch.manual_seed``, which has seeded it."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def _is_in_bad_fork(self) -> bool:
        return False


def install() -> None:
    """Make the device. Raises RuntimeError where this process has an ``npu`` already, fake or true."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if hasattr(torch, "npu"):
        raise RuntimeError("torch has a device npu already; start a process of its own for the fake one")
    _setup_privateuseone_for_python_backend("npu", Module())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, "PrivateUse1")
    # torch.tensor(..., device="npu") comes past a tensor's own dispatch, and finds a registered kernel only.
    aten.impl("copy_", lambda *args: run(torch.ops.aten.copy_.default, *args), "PrivateUse1")
    _LIBRARIES.extend([every, aten])


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an op of the device on what lies in its memory. Raises RuntimeError as a device does, for mixed devices."""
    DISPATCHED[op.name()] += 1
    given = pytree.tree_leaves((args, kwargs))
    if op._schema.name not in CROSSING:
        _refuse_others(op, given)
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    inner_args, inner_kwargs = pytree.tree_map(in_memory, (args, kwargs))
    # Memory is the same in inference mode and outside; the mode is the business of who holds the tensors.
    with torch.inference_mode(False):
        found = op(*inner_args, **inner_kwargs)
        if device is not None and torch.device(device).type == "cpu":
            return found
        # What an op returns of what it was given, it returns as the same tensor.
        owners = {id(in_memory(x)): x for x in given if isinstance(x, Tensor)}
        return pytree.tree_map(lambda x: owners[id(x)] if id(x) in owners else _on_npu(x), found)


def in_memory(x: Any) -> Any:
    """The numbers of a tensor of the device; anything else as it is."""
    return x.memory if isinstance(x, OnNpu) else x


@contextmanager
def card() -> Iterator[None]:
    """Have launchers find a card of ``VECTOR_CORES`` at Triton's driver."""
    from triton.runtime import driver

    found: Any = driver
    before, found._active = found._active, _Card()
    try:
        yield
    finally:
        found._active = before


def launch_in_memory(launch: Launch) -> Launch:
    """A launch of the device's tensors as one of its memory. Raises RuntimeError for a tensor of the host."""
    for (name, _), value in zip(launch.signature, launch.values, strict=True):
        if isinstance(value, Tensor) and not isinstance(value, OnNpu):
            raise RuntimeError(f"{launch.name}: {name} is on {value.device}, where no kernel of npu:0 can read it")
    return replace(launch, values=tuple(in_memory(value) for value in launch.values))


class _Card:
    """Stands for Triton's driver and its ``utils``, of which launchers ask one thing."""

    @property
    def utils(self) -> _Card:
        return self

    def get_device_properties(self, index: int) -> dict[str, int]:
        return {"num_vectorcore": VECTOR_CORES}


def _on_npu(x: Any) -> Any:
    return OnNpu(x) if isinstance(x, Tensor) and not isinstance(x, OnNpu) else x


def _refuse_others(op: Any, given: Sequence[Any]) -> None:
    """A number of no dimension may come from the host: that is a scalar, to every device."""
    for x in given:
        if isinstance(x, Tensor) and not isinstance(x, OnNpu) and x.dim() > 0:
            raise RuntimeError(
                f"{op.name()}: expected all tensors to be on the same device, but found two: npu:0 and {x.device}"
            )
