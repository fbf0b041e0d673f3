"""What a correct provider may return for one case: judged outputs, and the corruptions a judge must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.budget import Arithmetic, Budgeted
from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import ALPHA, Comparison, compare, exactly, within_codes
from minimax_m2.harness.formats import FORMATS
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.returned import outputs_of
from minimax_m2.reference.contract import Contract

Outputs = tuple[Tensor, ...]


class Expectation(Protocol):
    """Knows what is right for one case under one contract."""

    op: Op
    dtypes: dict[str, torch.dtype]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output."""
        ...

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of corruption that some case of this op must let apply."""
        ...

    def judge(self, outputs: Outputs, *, alpha: float = ALPHA, suspect: str = "") -> list[Comparison]:
        """Compare outputs of the expected shapes and dtypes; all tests together cry wolf at most ``alpha`` often.

        Where all but the output ``suspect`` are known to be right, that one decides, by its first failure.
        """
        ...

    def perfect(self) -> Outputs:
        """A correct answer: the reference's, rounded once."""
        ...

    def corruptions(self) -> Iterator[tuple[str, Outputs]]:
        """Wrong answers that the judge must reject."""
        ...


# What a kernel that is emulated computes in between its named roundings.
EMULATED_IN = (torch.float64, torch.float32)


@dataclass
class Tensors:
    """The expectation of an op whose outputs are tensors to compare one by one."""

    op: Op
    expected: dict[str, Budgeted | Tensor]
    dtypes: dict[str, torch.dtype]
    # What a kernel returns that rounds where the contract says: the reference's second reading, made when needed.
    emulate: Callable[[torch.dtype], Outputs] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.expected.items()}

    def judge(self, outputs: Outputs, *, alpha: float = ALPHA, suspect: str = "") -> list[Comparison]:
        found = []
        for place, ((name, value), actual) in enumerate(zip(self.expected.items(), outputs, strict=True)):
            if suspect not in ("", name):
                continue
            if isinstance(value, Tensor):
                found.append(exactly(name, actual, value))
            elif value.allowed is not None:
                found.append(within_codes(name, actual, value))
            else:
                share, hasty = alpha / len(self.expected), bool(suspect)
                found.append(compare(name, actual, value, share, emulated=self._emulated(place), hasty=hasty))
        return found

    def _emulated(self, place: int) -> list[Callable[[], Tensor]]:
        return [] if self.emulate is None else [partial(_output, self.emulate, w, place) for w in EMULATED_IN]

    def perfect(self) -> Outputs:
        values = [specified(v) if isinstance(v, Budgeted) else v for v in self.expected.values()]
        return tuple(v.to(self.dtypes[name]) for name, v in zip(self.expected, values, strict=True))

    @property
    def kinds(self) -> frozenset[str]:
        found = {"zeros"}
        for value, dtype in zip(self.expected.values(), self.dtypes.values(), strict=True):
            found |= {"code"} if is_quantised(dtype) else {"gain"}
            if value.ndim > 1:
                found |= {"rows", "row", "tile"}
        return frozenset(found)

    def corruptions(self) -> Iterator[tuple[str, Outputs]]:
        return corruptions(self.perfect(), tuple(self.dtypes), [certain(v) for v in self.expected.values()])


def _output(emulate: Callable[[torch.dtype], Outputs], working: torch.dtype, place: int) -> Tensor:
    return emulate(working)[place]


def certain(x: Budgeted | Tensor) -> Tensor | None:
    """Elements for which one code only is right; None where the value is no code."""
    return None if isinstance(x, Tensor) or x.allowed is None else x.allowed[0] == x.allowed[1]


def specified(x: Budgeted) -> Tensor:
    """The value, NaN where the budget cannot place it: there nothing is right or wrong."""
    return torch.where(torch.isfinite(x.bound), x.value, torch.nan)


def expectation(
    op: Op, case: Case, contract: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Expectation:  # fmt: skip
    """Run the reference on budgeted inputs under a full contract: the case's own, or those ``given``."""
    arguments = op.inputs(case, Bits(case)) if given is None else dict(given)
    dtypes = {name: _dtype(case, kind) for name, kind in op.outputs.items()}
    arithmetic = Arithmetic(
        FORMATS[str(contract["arithmetic"])], float(contract["exp_ulps"]), int(contract["lanes"]),
        contract["tensor_core"],
    )  # fmt: skip
    oracle = {name: _oracle_input(op, name, value, arithmetic) for name, value in arguments.items()}
    if op.expect is not None:
        return op.expect(op, case, oracle, Contract(contract), dtypes)
    values = call_reference(op, oracle, Contract(contract))
    emulate = cache(partial(emulated, op, case, contract, given=given))
    return Tensors(op, dict(zip(op.outputs, values, strict=True)), dtypes, emulate)


def emulated(
    op: Op, case: Case, contract: Mapping[str, Any], working: torch.dtype = torch.float64,
    given: Mapping[str, Any] | None = None,
) -> Outputs:  # fmt: skip
    """What a kernel returns that rounds where ``contract`` says, and otherwise computes in ``working``."""
    arguments = {
        name: value if name in op.mutates else _in_dtype(op, value, working)
        for name, value in (op.inputs(case, Bits(case)) if given is None else given).items()
    }
    returned = call_reference(op, arguments, Contract(contract))
    return tuple(value.to(_dtype(case, kind)) for value, kind in zip(returned, op.outputs.values(), strict=True))


def _in_dtype(op: Op, value: Any, working: torch.dtype) -> Any:
    if isinstance(value, Pack):
        return getattr(op.module, value.function)(**{k: _in_dtype(op, v, working) for k, v in value.arguments.items()})
    return value.to(working) if isinstance(value, Tensor) and value.is_floating_point() else value


def call_reference(op: Op, arguments: dict[str, Any], contract: Contract) -> tuple[Any, ...]:
    """Call the reference; written inputs follow the returned values."""
    given = {name: value for name, value in arguments.items() if name != "out_dtype"}
    return outputs_of(op, op.bind(op.reference, given | {"contract": contract})(), arguments)


def _dtype(case: Case, kind: str) -> torch.dtype:
    return getattr(torch, case.word(kind) if kind in case else kind)


def _oracle_input(op: Op, name: str, value: Any, arithmetic: Arithmetic) -> Any:
    if isinstance(value, Pack):
        arguments = {k: _oracle_input(op, k, v, arithmetic) for k, v in value.arguments.items()}
        return getattr(op.module, value.function)(**arguments)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    wide = value.to(torch.float64)
    return Budgeted.exact(wide, arithmetic) if name in op.budgeted else wide


def corruptions(
    perfect: Outputs, names: tuple[str, ...], certainty: Sequence[Tensor | None]
) -> Iterator[tuple[str, Outputs]]:
    """Canonical wrong answers made from a correct one: ``(output:kind, outputs)``. Inapplicable ones are left out.

    zeros  every element 0                 rows  rows moved by one
    row    the middle row 0                tile  a tile copied over its neighbour
    gain   times 1.01 (floating outputs of at least 32 elements)
    code   one element moved by one code (quantised and integer outputs), where ``certainty`` leaves no choice
    """
    for position, (name, right, sure) in enumerate(zip(names, perfect, certainty, strict=True)):
        for kind, wrong in corrupted(right, sure):
            if noticeable(wrong, right, sure):
                yield f"{name}:{kind}", (*perfect[:position], wrong, *perfect[position + 1 :])


def corrupted(right: Tensor, sure: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
    if right.numel() == 0:
        return
    yield "zeros", torch.zeros_like(right)
    if right.ndim > 1 and right.shape[0] > 1:
        # float8 has no roll, so move the bytes of its rows.
        order = torch.arange(right.shape[0]).roll(1)
        yield "rows", right[order]
        cleared = right.clone()
        cleared[right.shape[0] // 2] = 0
        yield "row", cleared
    if is_quantised(right.dtype):
        moved = right.clone().flatten()
        movable = torch.arange(moved.numel()) if sure is None else sure.flatten().nonzero()[:, 0]
        if movable.numel():
            middle = movable[movable.numel() // 2]
            moved[middle] = _next_code(moved[middle])
        yield "code", moved.view(right.shape)
    elif right.numel() >= 32:
        yield "gain", (right.double() * 1.01).to(right.dtype)
    if right.ndim > 1 and right.shape[-1] >= 2:
        wide = min(64, right.shape[-1] // 2)
        tiled = right.clone()
        tiled[..., :wide] = right[..., wide : 2 * wide]
        yield "tile", tiled


def _next_code(value: Tensor) -> Tensor:
    if value.dtype == torch.float8_e4m3fn:
        code = value.view(torch.uint8)
        return (code ^ 1).view(torch.float8_e4m3fn)
    return value + 1 if int(value) < torch.iinfo(value.dtype).max else value - 1


def is_quantised(dtype: torch.dtype) -> bool:
    """Integers and 8-bit floats: outputs without a tolerance, whose neighbour is another answer."""
    return not dtype.is_floating_point or dtype.itemsize == 1


def noticeable(wrong: Tensor, right: Tensor, sure: Tensor | None = None) -> bool:
    """Whether a corruption is an error at all: a row that moved by more than 1/256 of its size, or another integer.

    Rows that differ in their last bits only, or in codes that are not ``sure``, may be exchanged without anybody being
    wrong.
    """
    if is_quantised(right.dtype):
        differs = wrong.double() != right.double()
        return bool((differs if sure is None else differs & sure).any())
    rows = right.double().nan_to_num(posinf=0, neginf=0).reshape(right.shape[0], -1)
    change = (wrong.double().nan_to_num(posinf=0, neginf=0).reshape(rows.shape) - rows).norm(dim=-1)
    # Below the smallest normal number a kernel may flush to zero.
    return bool(((change > rows.norm(dim=-1) / 256) & (change > 2.0**-120)).any())
