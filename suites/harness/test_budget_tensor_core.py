"""Tensor cores cut where float32 rounds: declared, a kernel on them is right; undeclared, it is caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.verdict import Verdict

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
