"""The launches of a call of ours, taken over before Triton would look for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.npu.toolchain import CARDS, Request

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64",
    torch.int8: "*i8", torch.uint8: "*u8", torch.bool: "*i1", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch: the Triton function, the types and values of its arguments in their order, its constants, its grid."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    values: tuple[Any, ...]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def request(self, stage: str, card: str = CARDS[0]) -> Request:
        """What to ask the compilers for."""
        file = self.kernel.fn.__code__.co_filename
        return Request(
            stage=stage, file=file, kernel=self.name, signature=self.signature, constants=self.constants, card=card
        )


@contextmanager
def taken_over(take: Callable[[Launch], None]) -> Iterator[None]:
    """Hand the launches made inside to ``take`` instead of running them."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def taken(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        take(launch_of(self, args, kwargs, grid))

    JITFunction.run = taken
    try:
        yield
    finally:
        JITFunction.run = run


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call, none of which runs."""
    found: list[Launch] = []
    with taken_over(found.append):
        call()
    return found


def launch_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: tuple[int, ...]) -> Launch:
    """Type a launch: what is None or declared so is a constant, nothing else is."""
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, args, strict=False)) | kwargs
    signature, constants, values = [], [], []
    for parameter in kernel.params:
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            constants.append((parameter.name, value))
        else:
            signature.append((parameter.name, _type_of(value)))
            values.append(value)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(values), tuple(grid))


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"
