"""Schema and host-side checks of ``add_rms_norm_quant``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema

schema.define(
    "add_rms_norm_quant(Tensor x, Tensor residual, Tensor weight, float eps, int group, "
    "Tensor(a!) q, Tensor(b!) scale, Tensor(c!) residual_out) -> ()"
)


def check(x: Tensor, residual: Tensor, weight: Tensor, *, group: int) -> None:
    """Raise what the host can know about the arguments of ``add_rms_norm_quant``."""
    add_rms_norm_schema.check(x, residual, weight)
    block_quant_schema.check_group(group)
