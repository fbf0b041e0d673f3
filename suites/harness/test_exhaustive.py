"""All numbers of a format: right functions are right at each of them, and what is wrong at one alone is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.exhaustive import (
    FUNCTIONS,
    Function,
    Histogram,
    exact,
    functions_of,
    histogram,
    histograms,
    numbers,
)
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import function_of, plain
from minimax_m2.harness.record import Record
from minimax_m2.harness.report import page

ASKED = [(function, dtype) for function in FUNCTIONS for dtype in function.dtypes]
SILU, SIGMOID = FUNCTIONS[:2]


@pytest.mark.parametrize("function, dtype", ASKED, ids=lambda value: getattr(value, "name", str(value)))
def test_every_number_is_right_on_every_instruction_set(function: Function, dtype: torch.dtype) -> None:
    providers = [plain(), ours()]
    found = [asked(function, dtype, p, variant) for p in providers for variant in p.variants_of(function.op)]
    assert [one for one in found if one.wrong] == []
    assert all(sum(one.counts) == sum(found[0].counts) for one in found)


@pytest.mark.parametrize("dtype, count", [(torch.bfloat16, 65_280), (torch.float16, 63_488)])
def test_all_finite_numbers_of_a_format_are_asked(dtype: torch.dtype, count: int) -> None:
    x = numbers(SILU, dtype)
    assert len(x) == len(x.view(torch.int16).unique()) == count
    assert bool(x.isfinite().all())
    codes = numbers(*functions_of("block_dequant")[0])
    assert len(codes) == 254


def test_exact_values_are_those_of_the_functions() -> None:
    x, silu = numbers(SILU, torch.bfloat16).double(), exact(SILU, torch.bfloat16)
    at = {value: float(silu[int((x == value).nonzero()[0])]) for value in (1.0, -2.0)}
    assert at == {1.0: 0.7310585786300049, -2.0: -0.23840584404423512}


def asked(function: Function, dtype: torch.dtype, provider: Provider, variant: str = "") -> Histogram:
    found = histogram(function, dtype, provider, variant)
    assert found is not None
    return found


def right(name: str) -> Callable[..., Any]:
    function = function_of(name)
    assert function is not None
    return function


def of(**functions: Callable[..., Any]) -> Provider:
    return from_object(SimpleNamespace(**functions), name="tried")


def test_what_is_wrong_at_one_number_alone_is_found() -> None:
    def silu(gate_up: Tensor) -> Tensor:
        gate = gate_up.chunk(2, -1)[0]
        return torch.where(gate == -2.015625, -0.25, right("swiglu")(gate_up))

    best, found = (asked(SILU, torch.bfloat16, of(swiglu=f)) for f in (right("swiglu"), silu))
    assert "actual -0.25, expected -0.236981332" in found.wrong
    assert [b - a for a, b in zip(best.counts, found.counts, strict=True)] == [-1, 0, 0, 0, 1]


def test_a_function_of_fewer_bits_is_found_and_lies_in_the_bins_behind() -> None:
    def narrow(*given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        weights, ids = right("routing")(*given, **more)
        return weights.to(torch.bfloat16).float(), ids

    best, found = (asked(SIGMOID, torch.bfloat16, one) for one in (plain(), of(routing=narrow)))
    assert not best.wrong
    assert "for expert 0, budget" in found.wrong
    assert best.counts[-1] == 0 < found.counts[-1]
    assert sum(best.counts) == sum(found.counts)


def test_a_quantiser_that_cuts_is_found_by_the_half_of_all_numbers_that_it_rounds_wrong() -> None:
    def cut(x: Tensor, *, group: int, scale_format: str) -> tuple[Tensor, Tensor]:
        q, scale = right("block_quant")(x, group=group, scale_format=scale_format)
        away = q.double().abs() > x.double().abs()
        lower = (q.view(torch.uint8) - away.to(torch.uint8)).view(torch.float8_e4m3fn)
        return lower, scale

    function, dtype = functions_of("block_quant")[0]
    best, found = asked(function, dtype, plain()), asked(function, dtype, of(block_quant=cut))
    assert (best.wrong, best.counts[1:]) == ("", (0,) * 4)
    assert found.wrong.startswith("q at [")
    assert found.counts[1] > 0


def raising(gate_up: Tensor) -> Tensor:
    raise RuntimeError("an illegal memory access")


@pytest.mark.parametrize(
    "silu, told",
    [(raising, "raised RuntimeError: an illegal memory access"), (lambda gate_up: gate_up, "y has shape [255, 512]")],
)
def test_what_a_provider_raises_or_gives_another_shape_is_wrong(silu: Callable[..., Any], told: str) -> None:
    assert asked(SILU, torch.bfloat16, of(swiglu=silu)).wrong.startswith(told)


def test_what_a_provider_refuses_is_not_asked() -> None:
    refusing = replace(plain(), refuses=lambda op, case: "needs AMX")
    assert histogram(SILU, torch.bfloat16, refusing) is None
    assert list(histograms(refusing, "swiglu")) == []


def test_a_page_shows_how_far_from_mpmath_the_answers_are() -> None:
    record = Record.of(judge(find_op("swiglu").case(), plain()), run="20260101T000000Z")
    found = asked(SILU, torch.bfloat16, plain())
    text = page([record], absent=[], every=[found, found._replace(wrong="y <at> [1]", provider="tried")])
    assert f'<td class="n">{found.counts[0]}' in text
    assert "y &lt;at&gt; [1]" in text
    assert "Every number" not in page([record], absent=[])


def test_what_a_provider_does_not_offer_is_not_asked() -> None:
    assert list(histograms(of(rms_norm=right("rms_norm")), "swiglu")) == []
    assert [one.name for one in histograms(plain(), "gdn_gating")] == ["sigmoid", "-softplus"]
    assert list(histograms(plain(), "linear")) == []
