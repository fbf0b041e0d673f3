"""Schema and host-side checks of ``linear``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("linear(Tensor x, Tensor weight, Tensor(a!) out) -> ()")


def check(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None) -> None:
    """Raise what the host can know about the arguments of ``linear``."""
    schema.expect_shape("x", x, (None, None), "[T, H]")
    schema.expect_dtype("x", x, schema.FLOATS)
    schema.expect_rows("x", x)
    schema.expect_shape("weight", weight, (None, x.shape[1]), "[N, H]")
    schema.expect_dtype("weight", weight, (x.dtype,))
    schema.expect_rows("weight", weight)
    schema.expect_device("weight", weight, x.device)
    if min(weight.shape) < 1:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected N >= 1 and H >= 1")
    check_out_dtype(out_dtype)


def check_out_dtype(out_dtype: torch.dtype | None) -> None:
    """Raise TypeError unless a product can be rounded to ``out_dtype``."""
    if out_dtype is not None and out_dtype not in schema.FLOATS:
        raise TypeError(f"out_dtype={out_dtype}, expected torch.float32, torch.bfloat16, torch.float16 or None")


def check_output(out: Tensor, *, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise what the host can know about the tensor that an ``_out`` variant fills."""
    schema.expect_shape("out", out, shape, "[T, N]")
    schema.expect_dtype("out", out, (dtype,))
    schema.expect_contiguous("out", out)
    schema.expect_device("out", out, device)
