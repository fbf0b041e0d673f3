"""SwiGLU: the gated activation of every expert."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded


def swiglu(gate_up: Tensor, *, contract: Contract = EXACT) -> Tensor:
    """Gate the upper half of each row by SiLU of the lower half.

        gate, up = halves(gate_up);  y = gate * sigmoid(gate) * up

    gate_up [T, 2*I], gate first
    returns [T, I], dtype of gate_up

    Contract:
        silu  silu(gate) before the product. Output dtype: vLLM csrc/activation_kernels.cu (silu_and_mul) and
              transformers; float32 or None: FlashInfer, SGLang cpu, the fused Triton kernels.
        out   the result.

    Raises ValueError for an odd width.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up has width {gate_up.shape[-1]}, which is odd; pass [T, 2*I], gate then up")
    gate, up = gate_up.chunk(2, -1)
    return rounded(rounded(torch.nn.functional.silu(gate), contract.silu) * up, contract.out)
