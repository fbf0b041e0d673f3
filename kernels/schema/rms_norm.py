"""Schema and host-side checks of ``rms_norm``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()")


def check(x: Tensor, weight: Tensor) -> None:
    """Raise what the host can know about the inputs of ``rms_norm``."""
    schema.expect_shape("x", x, (None, None), "[T, H]")
    schema.expect_dtype("x", x, schema.FLOATS)
    schema.expect_rows("x", x)
    schema.expect_shape("weight", weight, (x.shape[1],), "[H]")
    schema.expect_dtype("weight", weight, (x.dtype,))
    schema.expect_rows("weight", weight)
    schema.expect_device("weight", weight, x.device)


def check_output(
    name: str, out: Tensor, *, shape: tuple[int, ...], symbols: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise what the host can know about a dense tensor that an ``_out`` variant fills."""
    schema.expect_shape(name, out, shape, symbols)
    schema.expect_dtype(name, out, (dtype,))
    schema.expect_contiguous(name, out)
    schema.expect_device(name, out, device)
