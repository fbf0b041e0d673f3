"""Tensor cores cut where float32 rounds: declared, a kernel on them is right; undeclared, it is caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import function_of
from minimax_m2.harness.verdict import Outcome, Verdict

CASE = find_op("linear").case(T=121, N=255, H=1024, dtype="bfloat16", out="float32", regime="normal", seed=5)


def sixteen_at_a_time(x: Tensor, weight: Tensor) -> Tensor:
    """An ``mma`` of bfloat16, bit for bit: exact sums of 16 products and the accumulator, cut to 24 bits."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    for left, right in zip(x.double().split(16, -1), weight.double().split(16, -1), strict=True):
        significand, exponent = torch.frexp(total + left @ right.mT)
        total = torch.ldexp(torch.trunc(significand * 2.0**24), exponent - 24)
    return total


def judged(gain: float = 1.0, **declared: object) -> Verdict:
    def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        return (sixteen_at_a_time(x, weight) * gain).to(out_dtype or x.dtype)

    contract = {"linear": declared}
    functions = {"linear": linear}
    return judge(CASE, Provider(name="emulated", device="cpu", functions=functions.get, contract=contract))


def test_a_declared_tensor_core_is_right() -> None:
    assert judged(tensor_core="bfloat16").passed


def test_an_undeclared_one_is_caught_by_its_gain() -> None:
    verdict = judged()

    assert not verdict.passed
    assert "projection" in " ".join(verdict.evidence)


def test_the_declaration_hides_no_wrong_gain() -> None:
    # Sixty times what the tensor core itself takes away.
    assert not judged(1 + 6e-5, tensor_core="bfloat16").passed


@pytest.mark.parametrize("kind", ["fp64", "tf32", ""])
def test_a_kind_that_no_engine_has_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"tensor_core=.* is not one that an engine has"):
        judged(tensor_core=kind)


def codes_at_a_time(x: Tensor, weight: Tensor, kept: int) -> Tensor:
    """A ``wgmma`` of e4m3, bit for bit: 32 products and the accumulator, cut 13 bits below the largest of them."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    for left, right in zip(x.double().split(32, -1), weight.double().split(32, -1), strict=True):
        added = torch.cat([left[:, None] * right, total[..., None]], -1)
        unit = torch.ldexp(torch.ones_like(total), torch.frexp(added.abs().amax(-1)).exponent - 1 - kept)
        total = torch.trunc(added / unit[..., None]).sum(-1) * unit
    return total


def judged_on_codes(case: Case, *, kept: int = 13, gain: float = 1.0, tensor_core: str | None = "e4m3") -> Verdict:
    """Judge a kernel that adds such sums in float32 every 128 products."""

    def fp8_linear(x: Tensor, packed: tuple[Tensor, Tensor, Tensor], **given: object) -> Tensor:
        weight, scale, _ = packed
        y = torch.zeros(x.shape[0], weight.shape[0])
        for rows, columns, by in zip(x.float().split(128, -1), weight.split(128, -1), scale.unbind(-1), strict=True):
            x_scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
            codes = (rows * (1 / x_scale)).to(torch.float8_e4m3fn)
            y += codes_at_a_time(codes, columns, kept).float() * (x_scale * by.repeat_interleave(128)[: len(weight)])
        return y * gain

    functions = {"fp8_linear": fp8_linear, "pack_fp8_linear": function_of("pack_fp8_linear")}
    contract = {"fp8_linear": {"activation": "e4m3", "reciprocal": "float32", "tensor_core": tensor_core}}
    return judge(case, Provider(name="emulated", device="cpu", functions=functions.get, contract=contract))


# The first one's row 687 has a sum that is large beside its products: an H200 returned 0.824468791 for 0.824901405.
SIZES: tuple[dict[str, Field], ...] = (
    {"T": 1600, "N": 9, "H": 129, "seed": 1600},
    {"T": 64, "N": 300, "H": 384, "seed": 3},
    {"T": 64, "N": 100, "H": 384, "seed": 4, "regime": "heavy"},
    {"T": 33, "N": 100, "H": 384, "seed": 4, "regime": "equal"},
    {"T": 16, "N": 64, "H": 1024, "seed": 5},
)
ON_CODES = [find_op("fp8_linear").case(dtype="float16", out="float32", **fields) for fields in SIZES]


@pytest.mark.parametrize("case", ON_CODES, ids=lambda case: case.id)
def test_a_kernel_on_codes_is_right(case: Case) -> None:
    verdict = judged_on_codes(case)

    assert verdict.passed, verdict.explain()


@pytest.mark.parametrize("case", ON_CODES[:2], ids=lambda case: case.id)
@pytest.mark.parametrize("wrong", [{"tensor_core": None}, {"gain": 1.001}, {"kept": 9}], ids=str)
def test_a_wrong_kernel_on_codes_is_caught(case: Case, wrong: dict[str, Any]) -> None:
    assert judged_on_codes(case, **wrong).outcome is Outcome.WRONG
