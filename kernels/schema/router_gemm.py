"""Schema and host-side checks of ``router_gemm``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("router_gemm(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) logits) -> ()")


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise what the host can know about the arguments of ``router_gemm``."""
    schema.expect_shape("x", x, (None, None), "[T, H]")
    schema.expect_dtype("x", x, schema.FLOATS)
    schema.expect_rows("x", x)
    schema.expect_shape("weight", weight, (None, x.shape[1]), "[E, H]")
    # A gate in the model's dtype chooses other experts for about 4 % of tokens.
    schema.expect_dtype("weight", weight, (torch.float32,))
    schema.expect_rows("weight", weight)
    schema.expect_device("weight", weight, x.device)
    if min(weight.shape) < 1:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected E >= 1 and H >= 1")
    if bias is not None:
        schema.expect_shape("bias", bias, (weight.shape[0],), "[E]")
        schema.expect_dtype("bias", bias, (torch.float32,))
        schema.expect_contiguous("bias", bias)
        schema.expect_device("bias", bias, x.device)
