"""Schema and host-side checks of ``swiglu``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema

schema.define("swiglu(Tensor gate_up, Tensor(a!) y) -> ()")


def check(gate_up: Tensor) -> None:
    """Raise what the host can know about the input of ``swiglu``."""
    schema.expect_shape("gate_up", gate_up, (None, None), "[T, 2*I]")
    schema.expect_dtype("gate_up", gate_up, schema.FLOATS)
    schema.expect_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has width {gate_up.shape[1]}, which is odd; pass [T, 2*I], gate then up")
