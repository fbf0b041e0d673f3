"""Residual addition, then RMSNorm: the step between any two halves of a decoder layer."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.rms_norm import rms_norm


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream and normalise the sum.

        z = x + residual;  y = z * rsqrt(mean(z^2) + eps) * weight

    x, residual  [T, H]
    weight       [H]
    returns      y, z, each [T, H], dtype of x

    Contract, in which three incompatible conventions are in use:
        residual     z as it is stored.
        variance_of  "rounded": y comes from the stored z (A: vLLM csrc/layernorm_kernels.cu; C: transformers, whose
                     addition is a step of its own); "unrounded": from the sum before it is stored
                     (B: FlashInfer, SGLang CUDA and cpu/norm.cpp). None: as "unrounded".
        normalised   see rms_norm: output dtype in A and C, float32 in B.
        out          y.

    Raises ValueError for another ``variance_of``.
    """
    if contract.variance_of not in (None, "rounded", "unrounded"):
        raise ValueError(f"contract.variance_of={contract.variance_of!r}; use 'rounded' or 'unrounded'")
    z = x + residual
    stored = rounded(z, contract.residual)
    y = rms_norm(stored if contract.variance_of == "rounded" else z, weight, eps=eps, contract=contract)
    return y, stored
