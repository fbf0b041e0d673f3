"""Quantise activations to e4m3 in groups along a row, one scale a group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.linear import in_dtype

LARGEST_E4M3 = 448.0
SMALLEST_ABSMAX = 1e-10


def block_quant(
    x: Tensor, *, group: int = 128, scale_format: str = "float32", contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Scale each group of a row so that its largest magnitude is 448, and round to e4m3.

        scale = max(absmax(group), 1e-10) / 448;  q = e4m3(clamp(x / scale, -448, 448))

    x        [T, H], row stride free
    returns  q [T, H] e4m3 (float64, on e4m3's grid, for a float64 x), scale [T, ceil(H/group)] float32

    Contract:
        scale       float32 in every engine.
        reciprocal  None: x / scale (vLLM per_token_group_quant, DeepGEMM); "float32": x times the rounded 1/scale
                    (vllm#43592 at 01007fdc), which flips codes at ties.
    ``scale_format="ue8m0"`` rounds the scale up to a power of two (DeepGEMM, SM100).
    """
    scale = group_scale(x, group=group, scale_format=scale_format, contract=contract)
    return in_dtype(quantised(x, scale, group=group, contract=contract), torch.float8_e4m3fn), scale


def group_scale(
    x: Tensor, *, group: int, largest: float = LARGEST_E4M3, scale_format: str = "float32", contract: Contract = EXACT
) -> Tensor:
    """Find each group's scale, ``[T, ceil(H/group)]``; ``largest`` is the code of the largest magnitude."""
    if scale_format not in ("float32", "ue8m0"):
        raise ValueError(f"scale_format={scale_format!r} is unknown; use 'float32' or 'ue8m0'")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    absmax = torch.cat([part.abs().amax(-1, keepdim=True) for part in x.split(group, -1)], -1)
    scale = rounded(absmax.clamp(min=SMALLEST_ABSMAX) / largest, contract.scale)
    return power_of_two_above(scale) if scale_format == "ue8m0" else scale


def quotient(x: Tensor, scale: Tensor, *, group: int, contract: Contract = EXACT) -> Tensor:
    """Divide each group by its scale: the numbers ``[T, H]`` that a quantiser rounds."""
    if contract.reciprocal is None:
        return x / scale.repeat_interleave(group, -1)[..., : x.shape[-1]]
    return x * rounded(1.0 / scale, contract.reciprocal).repeat_interleave(group, -1)[..., : x.shape[-1]]


def quantised(x: Tensor, scale: Tensor, *, group: int, contract: Contract = EXACT) -> Tensor:
    """Round the saturated quotient to e4m3's grid, ``[T, H]`` in the working dtype."""
    return rounded(quotient(x, scale, group=group, contract=contract).clamp(-LARGEST_E4M3, LARGEST_E4M3),
                   "float8_e4m3fn")  # fmt: skip


def requantised(x: Tensor, *, group: int, contract: Contract = EXACT) -> Tensor:
    """Quantise and dequantise ``x [T, H]``: what a W8A8 product sees. Contract: also ``scale_format``."""
    scale = group_scale(x, group=group, scale_format=contract.scale_format or "float32", contract=contract)
    expanded = scale.repeat_interleave(group, -1)[..., : x.shape[-1]]
    return (quantised(x, scale, group=group, contract=contract) * expanded).to(x.dtype)


def power_of_two_above(scale: Tensor) -> Tensor:
    """Round up to a power of two, exactly: a mantissa above 1/2 (frexp) takes the next exponent."""
    if has_torch_function_unary(scale):
        return handle_torch_function(power_of_two_above, (scale,), scale)
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
