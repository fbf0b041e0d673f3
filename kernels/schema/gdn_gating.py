"""Schema and host-side checks of ``gdn_gating``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("gdn_gating(Tensor A_log, Tensor a, Tensor b, Tensor dt_bias, Tensor(a!) g, Tensor(b!) beta) -> ()")


def check(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> None:
    """Raise what the host can know about the arguments of ``gdn_gating``."""
    schema.expect_shape("a", a, (None, None), "[T, Hv]")
    schema.expect_dtype("a", a, schema.FLOATS)
    schema.expect_rows("a", a)
    schema.expect_shape("b", b, tuple(a.shape), "[T, Hv]")
    schema.expect_dtype("b", b, (a.dtype,))
    schema.expect_rows("b", b)
    schema.expect_device("b", b, a.device)
    for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
        schema.expect_shape(name, x, (a.shape[1],), "[Hv]")
        schema.expect_dtype(name, x, tuple(dict.fromkeys((torch.float32, a.dtype))))
        schema.expect_contiguous(name, x)
        schema.expect_device(name, x, a.device)
