"""Schema and host-side checks of ``qk_norm_rope`` and ``qk_sum_squares``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema.rope import check_output, check_rotation

schema.define(
    "qk_norm_rope(Tensor qkv, Tensor? stats, Tensor q_weight, Tensor k_weight, Tensor cos_sin, Tensor positions, "
    "int num_heads, int num_kv_heads, int head_dim, int rotary_dim, int q_width, int k_width, float eps, "
    "Tensor(a!) q, Tensor(b!) k, Tensor(c!) v) -> ()"
)
schema.define("qk_sum_squares(Tensor qkv, int num_heads, int head_dim, int counted_kv_heads, Tensor(a!) stats) -> ()")


def check_qkv(qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Raise what the host can know about the rows of q, k and v."""
    schema.expect_range("num_heads", num_heads, 1, 2**16, "it is the rank's number of query heads")
    schema.expect_range("num_kv_heads", num_kv_heads, 1, 2**16, "it is the rank's number of key/value heads")
    schema.expect_range("head_dim", head_dim, 1, 2**16, "MiniMax-M2 has 128")
    schema.expect_shape("qkv", qkv, (None, (num_heads + 2 * num_kv_heads) * head_dim), "[T, (Hq + 2*Hk)*D]")
    schema.expect_dtype("qkv", qkv, schema.FLOATS)
    schema.expect_rows("qkv", qkv)


def counted(counted_kv_heads: int | None, *, num_kv_heads: int) -> int:
    """The number of key/value heads to count; raises for one that the rank does not have."""
    if counted_kv_heads is None:
        return num_kv_heads
    schema.expect_range("counted_kv_heads", counted_kv_heads, 0, num_kv_heads, "they are local key/value heads")
    return counted_kv_heads


def check(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> None:  # fmt: skip
    """Raise what the host can know about the arguments of ``qk_norm_rope``."""
    check_qkv(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    num_tokens, device = qkv.shape[0], qkv.device
    if stats is not None:
        check_stats(stats, num_tokens=num_tokens, device=device)
    for name, weight, heads in (("q_weight", q_weight, num_heads), ("k_weight", k_weight, num_kv_heads)):
        schema.expect_shape(name, weight, (heads * head_dim,), "[heads * D]")
        schema.expect_dtype(name, weight, (torch.float32, qkv.dtype))
        schema.expect_contiguous(name, weight)
        schema.expect_device(name, weight, device)
    schema.expect_dtype("k_weight", k_weight, (q_weight.dtype,))
    schema.expect_range("q_width", q_width, 1, 2**31 - 1, "it is the model's Hq*D, 6144 for MiniMax-M2")
    schema.expect_range("k_width", k_width, 1, 2**31 - 1, "it is the model's Hk*D, 1024 for MiniMax-M2")
    schema.expect_range("eps", eps, 0.0, math.inf, "MiniMax-M2 uses 1e-6")
    check_rotation(cos_sin, positions, rotary_dim=rotary_dim, head_dim=head_dim, num_tokens=num_tokens, device=device)


def check_split(
    input: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *,
    q_hidden_size: int, kv_hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int,
    eps: float, tp_world: int, use_qk_norm: bool,
) -> None:  # fmt: skip
    """Raise what the host can know about the arguments of ``split_qkv_tp_rmsnorm_rope``."""
    for name, size in (("q_hidden_size", q_hidden_size), ("kv_hidden_size", kv_hidden_size)):
        if size % head_dim:
            raise ValueError(f"{name}={size} is no multiple of head_dim={head_dim}; pass the rank's heads * head_dim")
    check_qkv(input, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    schema.expect_range("tp_world", tp_world, 1, 2**16, "it is the number of ranks that share the heads")
    schema.expect_range("eps", eps, 0.0, math.inf, "MiniMax-M2 uses 1e-6")
    schema.expect_range("rotary_dim", rotary_dim, 0, head_dim, "MiniMax-M2 rotates 64 of 128")
    if rotary_dim % 2:
        raise ValueError(f"rotary_dim={rotary_dim} is odd, expected pairs; MiniMax-M2 rotates 64 of 128")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dim() != 2 or len(table) != len(input) or table.shape[1] * 2 < rotary_dim:
            raise ValueError(
                f"{name} has shape {list(table.shape)}, expected [T, at least rotary_dim/2] = "
                f"[{len(input)}, {rotary_dim // 2}]; gather the rows of the positions first"
            )
        schema.expect_rows(name, table)
        schema.expect_device(name, table, input.device)
    for name, weight, width in (("q_weight", q_weight, q_hidden_size), ("k_weight", k_weight, kv_hidden_size)):
        if (weight is not None) != use_qk_norm:
            given = "None" if weight is None else "a tensor"
            raise ValueError(f"{name} is {given} with use_qk_norm={use_qk_norm}; weights come with the norm")
        if weight is not None:
            schema.expect_shape(name, weight, (width,), "[heads * D]")
            schema.expect_dtype(name, weight, (torch.float32, input.dtype))
            schema.expect_contiguous(name, weight)
            schema.expect_device(name, weight, input.device)


def check_stats(stats: Tensor, *, num_tokens: int, device: torch.device) -> None:
    """Raise what the host can know about sums of squares."""
    schema.expect_shape("stats", stats, (num_tokens, 2), "[T, 2]")
    schema.expect_dtype("stats", stats, (torch.float32,))
    schema.expect_contiguous("stats", stats)
    schema.expect_device("stats", stats, device)


def check_outputs(
    qkv: Tensor, q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    """Raise what the host can know about the tensors that ``qk_norm_rope_out`` fills."""
    num_tokens = qkv.shape[0]
    check_output("q", q, like=qkv, shape=(num_tokens, num_heads, head_dim), symbols="[T, Hq, D]")
    for name, x in (("k", k), ("v", v)):
        check_output(name, x, like=qkv, shape=(num_tokens, num_kv_heads, head_dim), symbols="[T, Hk, D]")
