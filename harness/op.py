"""An op: one step or fusion of the model, declared once in ``harness/ops/<op>.py``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field

# Where a provider's kernel rounds: contract fields, or a function of the case where its paths round differently.
Declared = Mapping[str, Any] | Callable[[Case], Mapping[str, Any]]


class Pack(NamedTuple):
    """An argument that each provider lays out for itself: ``function(**arguments)`` of the provider makes it."""

    function: str
    arguments: dict[str, Any]


class Spoilt(NamedTuple):
    """Arguments with numbers that only the data knows to be none, and what may come of them.

    A provider may refuse them by a ValueError that holds ``named``. What it returns instead ``implausible`` may find no
    fault with: an empty string. The ``rows`` apart, outputs are those of the arguments before they were spoilt.
    """

    arguments: dict[str, Any]
    rows: Tensor
    named: str
    implausible: Callable[[tuple[Tensor, ...]], str]


# Arguments that give some rows of the outputs, from all arguments and the rows' numbers.
Rows = Callable[[dict[str, Any], Tensor], dict[str, Any]]
# All arguments and outputs in turn as arguments and outputs of smaller calls, which hang on nothing else.
Pieces = Callable[[dict[str, Any], tuple[Tensor, ...]], Iterator[tuple[dict[str, Any], tuple[Tensor, ...]]]]


class Cost(NamedTuple):
    """What a call must at least do: bytes moved once, floating-point operations (a multiply-add is two)."""

    bytes: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """The declaration of one op.

    name      the op's name: of its reference function, of its files, of a provider's function
    outputs   output names and their dtype: a dtype name, or the case field that holds one
    factors   what a case may be: a field's values, the simplest first (Hypothesis shrinks towards it)
    settle    makes drawn fields consistent (``K <= E``); returns None to refuse a draw
    inputs    builds the arguments, by the reference's parameter names, in the dtypes the provider sees
    contract  where a kernel rounds unless its provider says otherwise
    choices   what a provider may say instead, by contract field: each value with the ``engine:file`` that does so;
              "dtype" stands for the dtype of the case: most engines round to what they return
    shapes    the named cases that are timed: ``decode`` and ``prefill``
    cost      least bytes and flops of a case
    parts     the ops a fusion is made of
    stem      the file's name, where it is not the op's (``qk_sum_squares`` lives in ``qk_norm_rope``)
    budgeted  inputs whose errors are propagated; the other floating inputs are exact and plain
    mutates   inputs the op writes; they count as outputs, in this order, after the returned ones
    contiguous  returned outputs that are contiguous as a whole; of the others the last dimension is
    expect    builds the expectation, where comparing tensors is not enough (routing is discrete)
    spoil     spoils some rows of the arguments, where nothing plausible may come of them; None where no row is left
    rows      the arguments that some rows of the outputs hang on alone: large cases are judged by rows
    pieces    the smaller calls that a timed one is made of: judged one after the other, they need little memory
    narrow_from  from how many tokens or sequences on drawn cases are narrow, to be judged in little time
    """

    name: str
    outputs: Mapping[str, str]
    factors: Mapping[str, tuple[Field, ...]]
    inputs: Callable[[Case, Bits], dict[str, Any]]
    contract: Callable[[Case], dict[str, Any]]
    choices: Mapping[str, Mapping[Any, str]]
    shapes: Mapping[str, Mapping[str, Field]]
    cost: Callable[[Case], Cost]
    settle: Callable[[dict[str, Field]], dict[str, Field] | None] = lambda fields: fields
    parts: tuple[str, ...] = ()
    stem: str = ""
    budgeted: tuple[str, ...] = ()
    mutates: tuple[str, ...] = ()
    contiguous: tuple[str, ...] = ()
    expect: Callable[..., Any] | None = field(default=None)
    spoil: Callable[[Case, dict[str, Any]], Spoilt | None] | None = field(default=None)
    rows: Rows | None = field(default=None)
    pieces: Pieces | None = field(default=None)
    narrow_from: Mapping[str, int] = field(default_factory=lambda: {"T": NARROW_FROM})

    @property
    def reference(self) -> Callable[..., Any]:
        """The reference function, whose signature is the op's."""
        return getattr(self.module, self.name)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"minimax_m2.reference.{self.stem or self.name}")

    def case(self, **fields: Field) -> Case:
        """A case of this op; every factor left out takes its simplest value, ``seed`` 0."""
        unknown = sorted(set(fields) - set(self.factors) - {"seed"})
        if unknown:
            known = ", ".join((*self.factors, "seed"))
            raise ValueError(f"op {self.name} has no case field {unknown[0]!r}; it has {known}")
        drawn: dict[str, Field] = {name: values[0] for name, values in self.factors.items()} | {"seed": 0} | fields
        settled = self.settle(drawn)
        if settled is None:
            raise ValueError(f"op {self.name} refuses the case {drawn}")
        return Case({"op": self.name, **settled})

    def shape(self, name: str) -> Case:
        """A named case to time."""
        return self.case(**self.shapes[name])

    def positional(self) -> tuple[str, ...]:
        """Names of the arguments passed by position."""
        kinds = inspect.signature(self.reference).parameters.values()
        return tuple(p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD)

    def bind(
        self, function: Callable[..., Any], arguments: Mapping[str, Any], outputs: Sequence[Tensor] = ()
    ) -> Callable[[], Any]:
        """The call ``function(*positional, *outputs, **keywords)`` with everything looked up beforehand.

        Positional is what the reference takes so; ``outputs`` are those of an ``_out`` variant.
        """
        keywords = dict(arguments)
        positional = [keywords.pop(name) for name in self.positional() if name in keywords]
        return partial(function, *positional, *outputs, **keywords)

    def full_contract(self, case: Case, declared: Declared) -> dict[str, Any]:
        """The default contract of a case with what a provider declares; unknown fields and values are refused."""
        declared = declared(case) if callable(declared) else declared
        fields = self.contract(case) | {"arithmetic": "float32", "exp_ulps": 1.0, "lanes": 1, "tensor_core": None}
        for name, value in declared.items():
            if name not in fields:
                raise ValueError(
                    f"contract field {self.name}.{name}={value!r} is unknown; {self.name} has {', '.join(fields)}"
                )
            legal = tuple({**self.choices, **GENERAL_CHOICES}.get(name, (fields[name],)))
            if name == "exp_ulps":
                _check_exp_ulps(self.name, value)
            elif name == "lanes":
                _check_lanes(self.name, value)
            elif value not in (*legal, fields[name]):
                raise ValueError(
                    f"contract field {self.name}.{name}={value!r} is not one that an engine has; use one of {legal}"
                )
        return fields | {n: case.word("dtype") if value == "dtype" else value for n, value in declared.items()}


# A grid that a kernel caps, as one did at 1,408 rows (kvcache-ai/sglang#68), ends far beyond the tiles.
MANY_ROWS = 2049
# From so many on, what is drawn to be judged is narrow.
NARROW_FROM = 1024


def by_row(*names: str) -> Rows:
    """For ``Op.rows``: a row of each output is made of the same row of these arguments, and of the others whole."""

    def restricted(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        return arguments | {name: arguments[name][rows] for name in names if arguments[name] is not None}

    return restricted


def narrowed(fields: dict[str, Field], **widest: int) -> dict[str, Field]:
    """The fields of a case with at least 1,024 rows, each of ``widest`` at most so wide; other cases as they are."""
    if int(fields["T"]) < NARROW_FROM:
        return fields
    return fields | {name: min(int(fields[name]), width) for name, width in widest.items()}


# tensor_core: cuBLAS and every Triton product of 16-bit factors; DeepGEMM's fp8_gemm.cuh, which leaves the tensor core
# every 128 products. See harness/budget_tensor_core.py.
GENERAL_CHOICES: dict[str, tuple[Any, ...]] = {
    "arithmetic": ("float32", "float64"),
    "tensor_core": (None, "bfloat16", "e4m3"),
}
# A correctly rounded exp, and the 20 ulp of vLLM's and SGLang's CPU kernels: the least accurate that an engine has.
EXP_ULPS = (0.5, 20.0)


def _check_exp_ulps(op: str, value: Any) -> None:
    """Refuse an accuracy that would widen the budget beyond that of any engine: then every output would be right."""
    low, high = EXP_ULPS
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"contract field {op}.exp_ulps={value!r} is no accuracy of an engine; use {low}..{high} ulp")


def _check_lanes(op: str, value: Any) -> None:
    """Refuse what is no number of partial sums; the more of them, the narrower the budget."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"contract field {op}.lanes={value!r} is no number of partial sums; use 1 or more")


@lru_cache(maxsize=1)
def all_ops() -> dict[str, Op]:
    """Every declared op by name: a file of ``harness/ops`` holds ``OP``, or ``OPS`` where a stem has several."""
    package = importlib.import_module("minimax_m2.harness.ops")
    found: dict[str, Op] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        declared = getattr(module, "OPS", None) or (module.OP,)
        found.update({op.name: op for op in declared})
    return found


def find_op(name: str) -> Op:
    """One op by name; KeyError lists the known ones."""
    ops = all_ops()
    if name not in ops:
        raise KeyError(f"unknown op {name!r}; known: {', '.join(ops)}")
    return ops[name]
