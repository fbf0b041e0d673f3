"""Schema and host-side checks of ``rope``, and of the rotation in the fusions that contain it."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

MAX_HEAD_DIM = 512

schema.define(
    "rope(Tensor q, Tensor k, Tensor cos_sin, Tensor positions, int rotary_dim, Tensor(a!) q_out, Tensor(b!) k_out)"
    " -> ()"
)


def check(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> None:
    """Raise what the host can know about the arguments of ``rope``."""
    schema.expect_shape("q", q, (None, None, None), "[T, Hq, D]")
    schema.expect_dtype("q", q, schema.FLOATS)
    schema.expect_rows("q", q)
    num_tokens, _, head_dim = q.shape
    schema.expect_shape("k", k, (num_tokens, None, head_dim), "[T, Hk, D]")
    schema.expect_dtype("k", k, (q.dtype,))
    schema.expect_rows("k", k)
    schema.expect_device("k", k, q.device)
    check_rotation(cos_sin, positions, rotary_dim=rotary_dim, head_dim=head_dim, num_tokens=num_tokens, device=q.device)


def check_rotation(
    cos_sin: Tensor, positions: Tensor, *, rotary_dim: int, head_dim: int, num_tokens: int, device: torch.device
) -> None:
    """Raise what the host can know about a table and the positions to look up in it."""
    schema.expect_range("head_dim", head_dim, 1, MAX_HEAD_DIM, "MiniMax-M2 has 128")
    schema.expect_range("rotary_dim", rotary_dim, 0, head_dim, "MiniMax-M2 rotates 64 of 128")
    if rotary_dim % 2:
        raise ValueError(f"rotary_dim={rotary_dim} is odd, expected pairs; MiniMax-M2 rotates 64 of 128")
    schema.expect_shape("cos_sin", cos_sin, (None, rotary_dim), "[P, R]")
    schema.expect_dtype("cos_sin", cos_sin, schema.FLOATS)
    schema.expect_rows("cos_sin", cos_sin)
    schema.expect_device("cos_sin", cos_sin, device)
    schema.expect_shape("positions", positions, (num_tokens,), "[T]")
    schema.expect_dtype("positions", positions, schema.INDICES)
    schema.expect_contiguous("positions", positions)
    schema.expect_device("positions", positions, device)


def check_output(name: str, x: Tensor, *, like: Tensor, shape: tuple[int, ...], symbols: str) -> None:
    """Raise what the host can know about a dense tensor of heads that an ``_out`` variant fills."""
    schema.expect_shape(name, x, shape, symbols)
    schema.expect_dtype(name, x, (like.dtype,))
    schema.expect_contiguous(name, x)
    schema.expect_device(name, x, like.device)
