"""Every budget rule against the evaluation it predicts: after a bfloat16 rounding, and in float32 alone.

``low`` is the least mean z^2 that a rule may have in float32, where it may overestimate; rules that overestimate by
more than two say so in their docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness.budget import RULES, Arithmetic, Budgeted, as_budgeted
from minimax_m2.harness.compare import compare
from minimax_m2.harness.expectation import Tensors, expectation
from minimax_m2.harness.formats import FORMATS
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import LANES, Contracts
from minimax_m2.reference.composites import renormalise, rms_normalise, softmax, unnormalised_softmax
from minimax_m2.reference.contract import rounded

ROWS, WIDTH = 300, 64
# 12 bits, so that times a float32 number is no float32 number: what is rounded next is then unknown to the budget.
UNEVEN = 4505 / 4096


def drawn(name: str, *shape: int) -> Tensor:
    """Normal float32 numbers; the same for the same name."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(shape, generator=generator)


OTHER, WEIGHT, LEFT = drawn("other", ROWS, WIDTH), drawn("weight", WIDTH, 48), drawn("left", 50, ROWS)


def noisy(name: str, *shape: int) -> Any:
    """Budgeted numbers behind a rounding to bfloat16 whose outcome the budget cannot know."""
    x: Any = Budgeted.exact(drawn(name, *shape)) * UNEVEN
    return rounded(x, "bfloat16")


class Program(NamedTuple):
    """A formula as a reference would write it, and what is special about it."""

    formula: Callable[[Any], Any]
    low: float = 0.5
    positive: bool = False


PROGRAMS = {
    "add": Program(lambda x: x + OTHER.to(x.dtype)),
    "sub": Program(lambda x: OTHER.to(x.dtype) - x),
    "mul": Program(lambda x: x * OTHER.to(x.dtype)),
    "div": Program(lambda x: OTHER.to(x.dtype) / x, positive=True),
    "square": Program(lambda x: x.square()),
    "abs": Program(lambda x: (x * UNEVEN).abs()),
    "sqrt": Program(lambda x: x.sqrt(), low=0.1, positive=True),
    "rsqrt": Program(lambda x: x.rsqrt(), low=0.1, positive=True),
    "exp": Program(lambda x: x.exp(), low=0.2),
    "log": Program(lambda x: (x + 1.5).log(), low=0.1, positive=True),
    "sigmoid": Program(torch.sigmoid),
    "silu": Program(functional.silu, low=0.3),
    "softplus": Program(functional.softplus, low=0.02),
    "clamp": Program(lambda x: (x * UNEVEN).clamp(-1.0, 1.0)),
    "sum": Program(lambda x: x.sum(-1), low=0.04),
    "mean": Program(lambda x: x.square().mean(-1), low=0.05),
    "amax": Program(lambda x: (x * UNEVEN).amax(-1)),
    "matmul": Program(lambda x: x @ WEIGHT.to(x.dtype), low=0.1),
    "matmul from the left": Program(lambda x: LEFT.to(x.dtype) @ x, low=0.05),
    "renormalise": Program(lambda x: renormalise(x[:, :8]), low=0.2, positive=True),
    "rms_normalise": Program(lambda x: rms_normalise(x, eps=1e-6), low=0.08),
    "softmax": Program(softmax, low=0.07),
    "unnormalised_softmax": Program(unnormalised_softmax, low=0.07),
    "repeat_interleave": Program(lambda x: (x * UNEVEN)[:, :8].repeat_interleave(8, -1)),
    "expand": Program(lambda x: (x * UNEVEN)[:, :1].expand(ROWS, 8) * OTHER[:, :8].to(x.dtype)),
    "cat": Program(lambda x: torch.cat([x[:, :4] * UNEVEN, x[:, 4:] * OTHER[:, 4:].to(x.dtype)], -1)),
    "where": Program(lambda x: torch.where(x > 0 if isinstance(x, Tensor) else x.value > 0, x * UNEVEN, x)),
}


def inputs(program: Program, name: str) -> Tensor:
    x = drawn(name, ROWS, WIDTH)
    return x.abs() + 0.125 if program.positive else x


def scores(program: Program, x: Tensor, site: str | None) -> tuple[Tensor, Tensor]:
    """z of the float32 evaluation where sigma is positive, and the largest error in units of the bound."""

    def formula(v: Any) -> Any:
        return program.formula(v if site is None else rounded(v * UNEVEN, site))

    budget = formula(Budgeted.exact(x, Arithmetic(FORMATS["float32"])))
    error = formula(x).double() - budget.value
    share = torch.where(error == 0, 0.0, error.abs() / budget.bound)
    return (error / budget.sigma)[budget.sigma > 0], share


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_rule_is_calibrated_behind_a_bfloat16_rounding(name: str) -> None:
    z, share = scores(PROGRAMS[name], inputs(PROGRAMS[name], name), "bfloat16")
    assert 0.8 <= float(z.square().mean()) <= 1.25
    assert float(share.max()) <= 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_rule_bounds_the_float32_evaluation(name: str) -> None:
    program = PROGRAMS[name]
    z, share = scores(program, inputs(program, name), None)
    assert program.low <= float(z.square().mean()) <= 1.25
    assert float(share.max()) <= 1


# Movements change no number: the tests of `moved` below stand for all of them.
MOVEMENTS = {
    *("reshape", "view", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "contiguous", "clone", "narrow"),
    *("select", "gather", "index_select", "flip", "roll", "movedim", "chunk", "split", "unbind", "tensor_split"),
    *("to", "double", "float", "type_as", "detach", "new_zeros", "zeros_like"),
}
SAME_RULE = {
    "mm": "matmul", "bmm": "matmul", "multiply": "mul", "divide": "div", "absolute": "abs", "clip": "clamp",
    "clamp_min": "clamp", "concat": "cat", "concatenate": "cat", "stack": "cat", "masked_fill": "where",
    "repeat": "expand", "expand_as": "expand", "broadcast_to": "expand",
}  # fmt: skip
# Calibrated in the tests of the op that brings it.
OF_AN_OP = {"delta_rule"}
# suites/harness/test_budget_composites.py and test_budget_quantisers.py
IN_COMPOSITES = frozenset({"rounded", "rounded_int8", "power_of_two_above", "whole_product"})


def test_every_rule_has_a_program() -> None:
    assert {SAME_RULE.get(name, name) for name in RULES} - MOVEMENTS - IN_COMPOSITES - OF_AN_OP <= set(PROGRAMS)


@pytest.mark.parametrize("primitive", ["cumsum", "erf", "tanh", "index_add", "layer_norm"])
def test_a_primitive_without_a_rule_raises_by_name(primitive: str) -> None:
    x = Budgeted.exact(torch.ones(4))
    function = getattr(torch, primitive, None) or getattr(functional, primitive)
    arguments = {"index_add": (0, torch.arange(4), torch.ones(4)), "layer_norm": ((4,),), "cumsum": (0,)}
    with pytest.raises(TypeError, match=primitive):
        function(x, *arguments.get(primitive, ()))
    with pytest.raises(AttributeError, match="no budget rule for 'tanh'"):
        x.tanh()


def test_known_errors_are_not_noise() -> None:
    zero, noisy = Budgeted.exact(torch.zeros(3)), Budgeted.exact(torch.full((3,), 2.0)).rsqrt()
    assert float((zero * noisy).bound.max()) == 0, "0 times anything is 0"
    few = Budgeted.exact(torch.arange(1.0, 16.0)) * torch.tensor(1 + 2**-22 + 2**-23, dtype=torch.float64)
    found = (few.value.float().double() - few.value).abs()
    assert torch.equal(few.sigma, found), "the one rounding of a product of exact numbers is a known number"
    constant = Budgeted.exact(torch.ones(1)).clamp(min=2.1)
    off = abs(torch.tensor(2.1, dtype=torch.float32).double().item() - 2.1)
    assert float(constant.bound) == off, "2.1 is no float32"


def test_an_inexact_value_used_twice_needs_a_composite() -> None:
    x = noisy("twice", 5000)
    ratio = x.square().var.mean() / (x * x).var.mean()
    assert 1.9 < float(ratio) < 2.1, "the docstring of `binary` names this factor"


@pytest.mark.parametrize("move", [lambda t: t.mT, lambda t: t[3], lambda t: t.reshape(-1, 2), lambda t: t.flip(0)])
def test_a_movement_moves_every_part_of_the_error(move: Callable[[Any], Any]) -> None:
    x: Any = rms_normalise(noisy("moved", 8, 6), eps=0.0)
    y = move(x)
    assert torch.equal(y.value, move(x.value))
    assert torch.equal(y.sigma, move(x.sigma))
    assert torch.equal(y.bound, move(x.bound))


def test_copies_of_one_element_share_its_error() -> None:
    x = noisy("copies", 500, 1)
    total = x.expand(500, 16).sum(-1)
    assert torch.equal(total.sigma, 16 * x.sigma[:, 0]) or float((total.sigma / x.sigma[:, 0]).std()) < 1e-3


def in_lanes(x: Tensor, lanes: int) -> Tensor:
    """Sums of rows in float32: so many partial sums, then a tree."""
    partial = torch.zeros(len(x), lanes)
    for part in x.split(lanes, -1):
        partial[:, : part.shape[-1]] += part
    while partial.shape[-1] > 1:
        partial = partial[:, ::2] + partial[:, 1::2]
    return partial[:, 0]


@pytest.mark.parametrize("lanes, declared, least", [(1, 1, 0.1), (16, 1, 0.002), (4, 4, 0.2), (16, 16, 0.2)])
@pytest.mark.parametrize("terms", [15, 64, 3072])
@pytest.mark.parametrize("signed", [True, False], ids=["signs", "one sign"])
def test_sums_are_bounded_for_one_lane_and_for_many(
    lanes: int, declared: int, least: float, terms: int, signed: bool
) -> None:
    """A kernel that says in how many lanes it adds is held to that."""
    x = drawn("lanes", 200, terms)
    x = x if signed else x.abs()
    arithmetic = Arithmetic(FORMATS["float32"], lanes=declared)
    for budget in (
        Budgeted.exact(x, arithmetic).sum(-1),
        (Budgeted.exact(x, arithmetic) @ torch.ones(terms, 1).double())[:, 0],
    ):
        error = in_lanes(x, lanes).double() - budget.value
        assert least < float((error / budget.sigma).square().mean()) < 1.25
        assert bool((error.abs() <= budget.bound).all())


def test_declaring_lanes_never_widens_a_budget() -> None:
    x = drawn("lanes", 50, 100)
    sigma = [
        Budgeted.exact(x[:, :terms], Arithmetic(FORMATS["float32"], lanes=lanes)).sum(-1).sigma
        for terms in (2, 3, 5, 16, 100)
        for lanes in (1, 4, 16)
    ]
    pairs = zip(sigma[::3] + sigma[1::3], sigma[1::3] + sigma[2::3], strict=True)
    assert all(bool((more <= less * (1 + 1e-12)).all()) for less, more in pairs)


def gain(actual: Tensor, budget: Budgeted) -> float:
    return compare("y", actual, budget).tests["gain"]


def test_roundings_of_crowded_sums_lean_one_way() -> None:
    """Scores of tiny logits, and sums of squares of short numbers: right, though their errors do not average out."""
    tiny = torch.arange(1, 6001, dtype=torch.float32)[:, None] * 2.0**-27
    one = torch.ones((), dtype=torch.float32)
    assert gain(one / (one + torch.exp(-tiny)), torch.sigmoid(Budgeted.exact(tiny))) < 1  # type: ignore[arg-type]
    short = drawn("short", 6000, 32).half().float()
    total = Budgeted.exact(short).square().sum(-1, keepdim=True)
    assert gain(in_lanes(short.square(), 16)[:, None], total) < 1


@pytest.mark.parametrize("lanes", [0, -4, 2.0, True, "many"])
def test_what_is_no_number_of_lanes_is_refused(lanes: object) -> None:
    op = find_op("linear")
    with pytest.raises(ValueError, match=r"contract field linear\.lanes="):
        op.full_contract(op.case(), {"lanes": lanes})


def test_the_lanes_of_a_contract_reach_the_budget() -> None:
    op = find_op("lm_head")
    case = op.case(H=3072)
    one, four = (expectation(op, case, op.full_contract(case, {"lanes": lanes})) for lanes in (1, 4))
    assert isinstance(one, Tensors)
    assert isinstance(four, Tensors)
    ratio = as_budgeted(four.expected["logits"]).sigma / as_budgeted(one.expected["logits"]).sigma
    assert 0.4 < float(ratio.mean()) < 0.6


def test_our_kernels_declare_lanes_for_ops_that_exist() -> None:
    contracts: Any = Contracts("cpu")
    assert {op: contracts[op]["lanes"] for op in LANES} == LANES
    assert "lanes" not in contracts["attention"]
