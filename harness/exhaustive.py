"""Every number there is: the elementwise functions of ops on all finite numbers of a format, beside mpmath.

A 16-bit format has some 65,000 finite numbers, e4m3 has 254, so nothing is drawn: each is asked, and a function that is
wrong at one of them alone is found. An answer is right within the budget of the provider's contract; how far it is from
what mpmath says, in units in the last place (ulp) of the output, is told as a histogram. Infinities and NaN are asked
by the relations of rows; what underflows has no ulp worth counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]
import torch
from torch import Tensor

from minimax_m2.harness.case import Field
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.expectation import expectation
from minimax_m2.harness.formats import FORMATS, half_ulp, name_of
from minimax_m2.harness.judge import malformed
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import given_by, placed
from minimax_m2.harness.verdict import describe

WIDTH = 256
LARGEST_CODE = 448
PRECISION = 80
"""Bits that mpmath computes with."""
BINS = (0.5, 1.0, 2.0, 8.0)
"""Upper ends in ulp: at most half of one is rounded right; a last bin holds the rest."""
NOTHING = (0,) * (len(BINS) + 1)
# What is exact is rounded to float64, which moves half an ulp of float32 by 2^-29 of one.
SLACK = 2.0**-24


class Function(NamedTuple):
    """A function of one number that an op computes.

    asked   arguments of a call that computes it of a row of numbers, and the fields of a case that has their dtypes
    output  which output holds it
    taken   the elements of that output that belong to the numbers, in their order
    """

    op: str
    name: str
    dtypes: tuple[torch.dtype, ...]
    asked: Callable[[Tensor], tuple[dict[str, Any], dict[str, Field]]]
    output: str
    taken: Callable[[Tensor], Tensor] = torch.flatten
    domain: Callable[[Tensor], Tensor] = torch.isfinite


class Histogram(NamedTuple):
    """How far from the exact values a function's answers are; ``worst`` ulp ``at`` one number, ``wrong`` in words."""

    op: str
    name: str
    dtype: str
    provider: str
    variant: str
    counts: tuple[int, ...]
    worst: float
    at: float
    wrong: str


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


EXACT: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "-softplus": lambda x: -mpmath.log1p(mpmath.exp(x)),
    "the number of a code": lambda x: x,
    "the code of a number": lambda x: x,
}


def rows_of(x: Tensor, width: int = WIDTH) -> Tensor:
    """Numbers as rows, zeros behind the last."""
    rows = -(-len(x) // width)
    return torch.cat([x, x.new_zeros(rows * width - len(x))]).view(rows, width)


def _swiglu(x: Tensor) -> tuple[dict[str, Any], dict[str, Field]]:
    gate = rows_of(x)
    return {"gate_up": torch.cat([gate, torch.ones_like(gate)], -1)}, {"dtype": name_of(x.dtype)}


def _routing(x: Tensor) -> tuple[dict[str, Any], dict[str, Field]]:
    """One expert a token, whose weight is its score."""
    logits = x.float()[:, None]
    given = {"logits": logits, "bias": None, "top_k": 1, "renormalize": False, "scoring": "sigmoid", "scale": 1.0}
    more = {"eps": 0.0, "indices_dtype": torch.int32, "num_valid": None}
    return given | more, {"T": len(x), "E": 1, "K": 1, "dtype": "float32"}


def _gdn_gating(x: Tensor) -> tuple[dict[str, Any], dict[str, Field]]:
    rows, nothing = rows_of(x), torch.zeros(WIDTH)
    return {"A_log": nothing, "a": rows, "b": rows, "dt_bias": nothing}, {"dtype": name_of(x.dtype)}


def _block_dequant(x: Tensor) -> tuple[dict[str, Any], dict[str, Field]]:
    given = {"q": rows_of(x), "scale": torch.ones(1, WIDTH // 128), "block": (128, 128), "dtype": torch.bfloat16}
    return given, {"dtype": "bfloat16"}


def _block_quant(x: Tensor) -> tuple[dict[str, Any], dict[str, Field]]:
    """The largest code at the head of every group, so that its scale is 1."""
    rows = rows_of(x, 127)
    given = {"x": torch.cat([torch.full_like(rows[:, :1], LARGEST_CODE), rows], -1), "group": 128}
    return given | {"scale_format": "float32"}, {"dtype": name_of(x.dtype)}


SIXTEEN = (torch.bfloat16, torch.float16)
FUNCTIONS = (
    Function("swiglu", "silu", SIXTEEN, _swiglu, "y"),
    Function("routing", "sigmoid", (torch.bfloat16,), _routing, "weights"),
    Function("gdn_gating", "sigmoid", (torch.bfloat16,), _gdn_gating, "beta"),
    Function("gdn_gating", "-softplus", (torch.bfloat16,), _gdn_gating, "g"),
    Function("block_dequant", "the number of a code", (torch.float8_e4m3fn,), _block_dequant, "w"),
    Function(
        "block_quant", "the code of a number", SIXTEEN, _block_quant, "q", lambda q: q[:, 1:].flatten(),
        lambda x: x.abs() <= LARGEST_CODE,
    ),
)  # fmt: skip


def functions_of(op_name: str) -> list[tuple[Function, torch.dtype]]:
    """Functions of an op with each format that they are asked on."""
    return [(function, dtype) for function in FUNCTIONS if function.op == op_name for dtype in function.dtypes]


def numbers(function: Function, dtype: torch.dtype) -> Tensor:
    """All finite numbers of a format that a function is asked on, both zeros among them."""
    bits = 8 * dtype.itemsize
    words = torch.arange(2**bits).to(torch.uint8 if bits == 8 else torch.int16)
    every = words.view(dtype)
    value = every.double()
    return every[torch.isfinite(value) & function.domain(value)]


@lru_cache(maxsize=len(FUNCTIONS) * 2)
def exact(function: Function, dtype: torch.dtype) -> Tensor:
    """What a function is by mpmath, to the nearest float64."""
    with mpmath.workprec(PRECISION):
        made = [float(EXACT[function.name](mpmath.mpf(x))) for x in numbers(function, dtype).double().tolist()]
    return torch.tensor(made, dtype=torch.float64)


def histogram(function: Function, dtype: torch.dtype, provider: Provider, variant: str = "") -> Histogram | None:
    """Ask a provider for all numbers of a format; None where it refuses such a call. What it raises is wrong."""
    op, x = find_op(function.op), numbers(function, dtype)
    given, fields = function.asked(x)
    case = op.case(**fields)
    if provider.refuses(op, case) is not None:
        return None
    right = expectation(op, case, op.full_contract(case, provider.contract.get(op.name, {})), given)
    named = (op.name, function.name, name_of(dtype), provider.name, variant)
    try:
        with provider.enter(variant):
            outputs = tuple(output.detach().cpu() for output in given_by(provider, op, placed(given, provider)))
    except (Exception, SystemExit) as error:
        return Histogram(*named, NOTHING, 0.0, 0.0, f"raised {type(error).__name__}: {error}")
    if fault := malformed(right, outputs):
        return Histogram(*named, NOTHING, 0.0, 0.0, fault[1])
    got = dict(zip(op.outputs, outputs, strict=True))[function.output]
    answers = function.taken(got).double()[: len(x)]
    value, fmt = exact(function, dtype), FORMATS[name_of(got.dtype)]
    # What lies below the smallest normal number may be flushed: the budget judges it.
    counted = value.abs() >= 2.0**fmt.emin
    off = torch.where(counted, (answers - value).abs() / (2 * half_ulp(value, fmt)), 0.0).nan_to_num(torch.inf)
    below = [int((counted & (off < end + SLACK)).sum()) for end in BINS]
    counts = (below[0], *(b - a for a, b in pairwise(below)), int(counted.sum()) - below[-1])
    worst = int(off.argmax())
    wrong = _wrong(right.judge(outputs), function.output)
    return Histogram(*named, counts, float(off[worst]), float(x[worst].double()), wrong)


def _wrong(found: list[Comparison], output: str) -> str:
    """Which element is beyond its budget. What elements do together is no noise here: all numbers are neighbours."""
    (own,) = (comparison for comparison in found if comparison.output == output)
    return describe(own) if own.tests.get("element", 0.0) > 1 else ""


def histograms(provider: Provider, op_name: str, variant: str = "") -> Iterator[Histogram]:
    """Those of every function of an op that a provider offers."""
    for function, dtype in functions_of(op_name) if provider.offers(op_name) else ():
        if found := histogram(function, dtype, provider, variant):
            yield found
