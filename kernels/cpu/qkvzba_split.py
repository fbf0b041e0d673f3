"""Take apart the two input projections of a gated delta net on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import qkvzba_split as split_schema
from minimax_m2.kernels.schema.rms_norm import check_output

extension.load("qkvzba_split")

# The binding checks what it reads, a decode step being shorter than the checks in Python; those say what was refused.
_qkvzba_split = torch.ops.minimax_m2.qkvzba_split.default


def qkvzba_split(
    qkvz: Tensor,
    ba: Tensor,
    *,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    layout: str = "contiguous",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copy ``[q | k | v]``, the output gate z, and the gates' inputs b and a.

    qkvz     [T, 2*Hk*Dk + 2*Hv*Dv] float32, bfloat16 or float16, row stride free: ``contiguous`` [q | k | v | z], or
             ``interleaved``, each key head's own [q | k | v | z] side by side
    ba       [T, 2*Hv], dtype of qkvz, row stride free: [b | a], or each key head's own
    returns  qkv [T, 2*Hk*Dk + Hv*Dv], z [T, Hv, Dv], b [T, Hv], a [T, Hv], contiguous, the same bits

    A consumer that takes strided rows needs no copy of the contiguous layout: see ``qkvzba_views``.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and heads that do not divide.
    """
    try:
        num_tokens = qkvz.shape[0]
        qkv = torch.empty(num_tokens, 2 * num_k_heads * head_k_dim + num_v_heads * head_v_dim, dtype=qkvz.dtype)
        z = torch.empty(num_tokens, num_v_heads, head_v_dim, dtype=qkvz.dtype)
        b = torch.empty(num_tokens, num_v_heads, dtype=qkvz.dtype)
        a = torch.empty(num_tokens, num_v_heads, dtype=qkvz.dtype)
        interleaved = split_schema.IS_INTERLEAVED[layout]
        _qkvzba_split(qkvz, ba, num_k_heads, num_v_heads, head_k_dim, head_v_dim, interleaved, qkv, z, b, a)
    except schema.REFUSED:
        split_schema.check(
            qkvz, ba, num_k_heads=num_k_heads, num_v_heads=num_v_heads, head_k_dim=head_k_dim, head_v_dim=head_v_dim,
            layout=layout,
        )  # fmt: skip
        raise
    return qkv, z, b, a


def qkvzba_split_out(
    qkvz: Tensor,
    ba: Tensor,
    qkv: Tensor,
    z: Tensor,
    b: Tensor,
    a: Tensor,
    *,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    layout: str = "contiguous",
) -> None:
    """Do what ``qkvzba_split`` does, into contiguous outputs."""
    try:
        interleaved = split_schema.IS_INTERLEAVED[layout]
        _qkvzba_split(qkvz, ba, num_k_heads, num_v_heads, head_k_dim, head_v_dim, interleaved, qkv, z, b, a)
    except schema.REFUSED:
        split_schema.check(
            qkvz, ba, num_k_heads=num_k_heads, num_v_heads=num_v_heads, head_k_dim=head_k_dim, head_v_dim=head_v_dim,
            layout=layout,
        )  # fmt: skip
        num_tokens, width = qkvz.shape[0], 2 * num_k_heads * head_k_dim + num_v_heads * head_v_dim
        for name, x, shape, symbols in (
            ("qkv", qkv, (num_tokens, width), "[T, 2*Hk*Dk + Hv*Dv]"),
            ("z", z, (num_tokens, num_v_heads, head_v_dim), "[T, Hv, Dv]"),
            ("b", b, (num_tokens, num_v_heads), "[T, Hv]"),
            ("a", a, (num_tokens, num_v_heads), "[T, Hv]"),
        ):
            check_output(name, x, shape=shape, symbols=symbols, dtype=qkvz.dtype, device=qkvz.device)
        raise


def qkvzba_views(
    qkvz: Tensor, ba: Tensor, *, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See the outputs of ``qkvzba_split`` in the contiguous layout's own memory, rows as far apart as the inputs'."""
    split_schema.check(
        qkvz, ba, num_k_heads=num_k_heads, num_v_heads=num_v_heads, head_k_dim=head_k_dim, head_v_dim=head_v_dim,
        layout="contiguous",
    )  # fmt: skip

    value = num_v_heads * head_v_dim
    qkv, z = qkvz.split([qkvz.shape[1] - value, value], -1)
    b, a = ba.split(num_v_heads, -1)
    return qkv, z.unflatten(1, (num_v_heads, head_v_dim)), b, a
