"""Schema and host-side checks of ``add_rms_norm_quant``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema
from minimax_m2.kernels.schema.rms_norm import check_output

schema.define(
    "add_rms_norm_quant(Tensor x, Tensor residual, Tensor weight, float eps, int group, "
    "Tensor(a!) q, Tensor(b!) scale, Tensor(c!) residual_out) -> ()"
)


def check(x: Tensor, residual: Tensor, weight: Tensor, *, group: int) -> None:
    """Raise what the host can know about the arguments of ``add_rms_norm_quant``."""
    add_rms_norm_schema.check(x, residual, weight)
    block_quant_schema.check_group(group)


def check_outputs(q: Tensor, scale: Tensor, residual_out: Tensor, *, x: Tensor, group: int) -> None:
    """Raise what the host can know about the tensors that ``add_rms_norm_quant_out`` fills."""
    shape = (x.shape[0], x.shape[1])
    block_quant_schema.check_outputs(
        q, scale, shape=shape, symbol="H", group=group, dtype=torch.float8_e4m3fn, device=x.device
    )
    check_output("residual_out", residual_out, shape=shape, symbols="[T, H]", dtype=x.dtype, device=x.device)
