"""Schema and host-side checks of ``qkvzba_split``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema

IS_INTERLEAVED = {"contiguous": False, "interleaved": True}

schema.define(
    "qkvzba_split(Tensor qkvz, Tensor ba, int num_k_heads, int num_v_heads, int head_k_dim, int head_v_dim, "
    "bool interleaved, Tensor(a!) qkv, Tensor(b!) z, Tensor(c!) b, Tensor(d!) a) -> ()"
)


def check(
    qkvz: Tensor, ba: Tensor, *, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int, layout: str
) -> None:
    """Raise what the host can know about the arguments of ``qkvzba_split``."""
    if layout not in IS_INTERLEAVED:
        raise ValueError(f"layout={layout!r} is unknown; use one of {', '.join(IS_INTERLEAVED)}")
    if min(num_k_heads, num_v_heads, head_k_dim, head_v_dim) < 1 or num_v_heads % num_k_heads:
        raise ValueError(
            f"num_k_heads={num_k_heads}, num_v_heads={num_v_heads}, head_k_dim={head_k_dim}, head_v_dim={head_v_dim}; "
            "expected positive sizes, and key heads that divide the value heads"
        )
    width = 2 * num_k_heads * head_k_dim + 2 * num_v_heads * head_v_dim
    schema.expect_shape("qkvz", qkvz, (None, width), "[T, 2*Hk*Dk + 2*Hv*Dv]")
    schema.expect_dtype("qkvz", qkvz, schema.FLOATS)
    schema.expect_rows("qkvz", qkvz)
    schema.expect_shape("ba", ba, (qkvz.shape[0], 2 * num_v_heads), "[T, 2*Hv]")
    schema.expect_dtype("ba", ba, (qkvz.dtype,))
    schema.expect_rows("ba", ba)
    schema.expect_device("ba", ba, qkvz.device)
