"""The router's product is float32 from its weight to its result: anything narrower chooses other experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def with_10_bit_significand(x: Tensor) -> Tensor:
    """Truncate float32 to TF32: 10 explicit bits of the significand."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, step: str = "") -> Tensor:
    """The product in float32 torch; ``step`` names one thing to do wrong."""
    x = x.float()
    if step == "keeps the gate in bf16":
        weight = weight.bfloat16().float()
    if step == "multiplies in TF32":
        x, weight = with_10_bit_significand(x), with_10_bit_significand(weight)
    if step == "drops the last 16 products":
        kept = max(1, x.shape[1] - 16)
        x, weight = x[:, :kept], weight[:, :kept]
    logits = x @ weight.mT
    if bias is not None and step != "ignores the bias":
        logits = logits + bias
    return logits.bfloat16().float() if step == "returns bf16 logits" else logits


def doing(step: str) -> Callable[..., Tensor]:
    def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return plain(x, weight, bias, step)

    return router_gemm


def test_a_correct_float32_product_passes() -> None:
    assert all(v.passed for v in try_on("router_gemm", doing(""), cases=200))


@pytest.mark.parametrize(
    "step",
    [
        "keeps the gate in bf16",
        "multiplies in TF32",
        "drops the last 16 products",
        "ignores the bias",
        "returns bf16 logits",
    ],
)
def test_a_wrong_product_is_told_with_its_worst_element(step: str) -> None:
    last = try_on("router_gemm", doing(step))[-1]
    assert last.outcome is Outcome.WRONG
    assert "logits" in last.explain()
    assert "m2check repro" in last.explain()
