"""Schema and host-side checks of ``routing``, ``pack_routing`` and ``unpack_routing``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

MAX_EXPERTS = 1024
MAX_TOP_K = 32
IS_SOFTMAX = {"sigmoid": False, "softmax": True}

# What MiniMax-M2 asks for is the default: an argument that is not passed costs the dispatcher nothing, each other one
# 0.1 us or more, and a decode step's kernel takes 0.5.
schema.define(
    "routing(Tensor logits, Tensor? bias, int top_k, Tensor(a!) weights, Tensor(b!) ids, bool renormalize=True, "
    "bool softmax=False, float scale=1.0, float eps=0.0, Tensor? num_valid=None) -> ()"
)
schema.define("pack_routing(Tensor weights, Tensor ids, int expert_start, Tensor(a!) packed) -> ()")
schema.define("unpack_routing(Tensor packed, int expert_start, Tensor(a!) weights, Tensor(b!) ids) -> ()")


def check(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    scoring: str,
    indices_dtype: torch.dtype,
    num_valid: Tensor | None,
) -> None:
    """Raise what the host can know about the arguments of ``routing``."""
    schema.expect_shape("logits", logits, (None, None), "[T, E]")
    schema.expect_dtype("logits", logits, schema.FLOATS)
    schema.expect_rows("logits", logits)
    check_choice(
        bias, num_experts=logits.shape[1], device=logits.device, top_k=top_k, scoring=scoring,
        indices_dtype=indices_dtype, num_valid=num_valid,
    )  # fmt: skip


def check_choice(
    bias: Tensor | None,
    *,
    num_experts: int,
    device: torch.device,
    top_k: int,
    scoring: str,
    indices_dtype: torch.dtype,
    num_valid: Tensor | None,
) -> None:
    """Raise what the host can know about a choice among ``num_experts``, wherever its logits come from."""
    schema.expect_range("num_experts", num_experts, 1, MAX_EXPERTS, "logits is [T, E]")
    schema.expect_range("top_k", top_k, 1, min(MAX_TOP_K, num_experts), "MiniMax-M2 uses 8")
    if scoring not in IS_SOFTMAX:
        raise ValueError(f"scoring={scoring!r} is unknown; use one of {', '.join(IS_SOFTMAX)}")
    if indices_dtype not in schema.INDICES:
        raise TypeError(f"indices_dtype={indices_dtype}, expected torch.int32 or torch.int64")
    if bias is not None:
        schema.expect_shape("bias", bias, (num_experts,), "[E]")
        schema.expect_dtype("bias", bias, (torch.float32,))
        schema.expect_contiguous("bias", bias)
        schema.expect_device("bias", bias, device)
    if num_valid is not None:
        schema.expect_dtype("num_valid", num_valid, (torch.int32,))
        schema.expect_device("num_valid", num_valid, device)
        if num_valid.numel() != 1:
            raise ValueError(f"num_valid has {num_valid.numel()} elements, expected one; pass a scalar tensor")


def check_outputs(weights: Tensor, ids: Tensor, *, shape: tuple[int, int], device: torch.device) -> None:
    """Raise what the host can know about the tensors that ``routing_out`` fills."""
    for name, x, dtypes in (("weights", weights, (torch.float32,)), ("ids", ids, schema.INDICES)):
        schema.expect_shape(name, x, shape, "[T, K]")
        schema.expect_dtype(name, x, dtypes)
        schema.expect_contiguous(name, x)
        schema.expect_device(name, x, device)


def check_pack(weights: Tensor, ids: Tensor, *, expert_start: int) -> None:
    """Raise what the host can know about the arguments of ``pack_routing``."""
    schema.expect_shape("ids", ids, (None, None), "[T, K]")
    schema.expect_shape("weights", weights, tuple(ids.shape), "[T, K]")
    schema.expect_dtype("ids", ids, schema.INDICES)
    schema.expect_dtype("weights", weights, (torch.float32,))
    schema.expect_contiguous("ids", ids)
    schema.expect_contiguous("weights", weights)
    schema.expect_device("weights", weights, ids.device)
    schema.expect_range("expert_start", expert_start, 0, 2**31 - 1, "it is the rank's first expert")


def check_unpack(packed: Tensor, *, expert_start: int) -> None:
    """Raise what the host can know about the arguments of ``unpack_routing``."""
    schema.expect_shape("packed", packed, (None, None), "[T, K]")
    schema.expect_dtype("packed", packed, (torch.int32,))
    schema.expect_contiguous("packed", packed)
    schema.expect_range("expert_start", expert_start, 0, 2**31 - 1 - 32767, "it is the rank's first expert")
