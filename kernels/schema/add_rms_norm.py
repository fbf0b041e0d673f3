"""Schema and host-side checks of ``add_rms_norm``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import rms_norm as rms_norm_schema

schema.define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, Tensor(a!) y, Tensor(b!) residual_out) -> ()"
)


def check(x: Tensor, residual: Tensor, weight: Tensor) -> None:
    """Raise what the host can know about the inputs of ``add_rms_norm``."""
    rms_norm_schema.check(x, weight)
    schema.expect_shape("residual", residual, tuple(x.shape), "[T, H]")
    schema.expect_dtype("residual", residual, (x.dtype,))
    schema.expect_rows("residual", residual)
    schema.expect_device("residual", residual, x.device)


def check_outputs(y: Tensor, residual_out: Tensor, *, x: Tensor) -> None:
    """Raise what the host can know about the tensors that ``add_rms_norm_out`` fills."""
    for name, out in (("y", y), ("residual_out", residual_out)):
        rms_norm_schema.check_output(name, out, shape=tuple(x.shape), symbols="[T, H]", dtype=x.dtype, device=x.device)
