"""RMSNorm over the hidden size."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.composites import rms_normalise
from minimax_m2.reference.contract import EXACT, Contract, rounded


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, contract: Contract = EXACT) -> Tensor:
    """Scale each row to root mean square 1, then each channel by its weight.

        y = x * rsqrt(mean(x^2) + eps) * weight

    x       [T, H]
    weight  [H]
    returns [T, H], dtype of x

    Contract:
        normalised  x * rstd before the weight. Output dtype: vLLM csrc/layernorm_kernels.cu and transformers
                    MiniMaxM2RMSNorm round here; float32 or None: FlashInfer, SGLang (CUDA, and cpu/norm.cpp) do not.
        out         the result.

    Source: transformers MiniMaxM2RMSNorm.forward, 5.23.0; eps is added to the mean.
    """
    normalised = rounded(rms_normalise(x, eps=eps), contract.normalised)
    return rounded(normalised * weight, contract.out).to(x.dtype)
