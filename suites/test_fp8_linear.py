"""An e4m3 weight is multiplied by the scale of its own block, whatever the shape leaves of the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome
from minimax_m2.reference.block_quant import requantised
from minimax_m2.reference.fp8_linear import PackedFp8Linear, pack_fp8_linear


def dequantised(packed: PackedFp8Linear, step: str) -> Tensor:
    """The weight in float32; ``step`` names one thing to do wrong."""
    rows, columns = packed.block.tolist()
    n, h = (torch.arange(size) for size in packed.weight.shape)
    row, column = n // rows, h // columns
    if step == "cuts 192 rows into halves" and len(n) == 192:
        row = (n // 96).clamp(max=len(packed.scale) - 1)
    if step == "takes the scale before for a partial block" and len(n) % rows:
        row = torch.where(row == row[-1], row[-1] - 1, row).clamp(min=0)
    if step == "takes the first column's scale":
        column = column * 0
    scale = packed.scale[row][:, column]
    return packed.weight.float() / scale if step == "divides by the scale" else packed.weight.float() * scale


def plain(x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None,
          out_dtype: torch.dtype | None = None, step: str = "") -> Tensor:  # fmt: skip
    """The layer in float32 torch; ``step`` names one thing to do wrong."""
    dtype = out_dtype or (torch.float32 if x_scale is not None else x.dtype)
    rows = x.float()
    if x_scale is not None:
        x_scale = x_scale * 0 + 1 if step == "forgets the scale of x" else x_scale
        rows = rows * x_scale[:, torch.arange(x.shape[1]) // int(packed.block[1])]
    elif step == "quantises its activations":
        rows = requantised(rows, group=int(packed.block[1]))
    return (rows @ dequantised(packed, step).mT).to(dtype)


def doing(step: str) -> Callable[..., Tensor]:
    def fp8_linear(
        x: Tensor, packed: PackedFp8Linear, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        return plain(x, packed, x_scale=x_scale, out_dtype=out_dtype, step=step)

    return fp8_linear


def test_a_correct_float32_layer_passes() -> None:
    verdicts = try_on("fp8_linear", doing(""), cases=200, pack_fp8_linear=pack_fp8_linear)
    assert all(v.passed for v in verdicts)


def test_quantised_activations_need_a_contract_that_says_so() -> None:
    w8a8 = doing("quantises its activations")
    assert not all(v.passed for v in try_on("fp8_linear", w8a8, pack_fp8_linear=pack_fp8_linear))
    declared = {"activation": "e4m3"}
    assert all(v.passed for v in try_on("fp8_linear", w8a8, contract=declared, pack_fp8_linear=pack_fp8_linear))


@pytest.mark.parametrize(
    "step",
    [
        "divides by the scale",
        "cuts 192 rows into halves",
        "takes the scale before for a partial block",
        "takes the first column's scale",
        "forgets the scale of x",
    ],
)
def test_a_wrong_layer_is_told_with_its_worst_element(step: str) -> None:
    last = try_on("fp8_linear", doing(step), cases=80, pack_fp8_linear=pack_fp8_linear)[-1]
    assert last.outcome is Outcome.WRONG
    assert "m2check repro" in last.explain()
