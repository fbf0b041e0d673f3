"""torch_npu's fused operators in plain torch, under the schemas of a release: what level N4 calls in their place.

Each does what the operator's documentation says for the arguments that MiniMax-M2 is run with, on any device, and
refuses others: a value that nobody here knows the meaning of must not be taken for one. float32 in between, one
rounding to the dtype of what is returned; where the device rounds is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.npu.torch_npu_schemas import schemas

_LIBRARIES: list[Any] = []
# The compressed causal mask that sparse_mode 3 asks for, whatever the lengths.
MASK = 2048
# What npu_fused_infer_attention_score has where nothing is asked for; its other arguments have None.
DEFAULTS = {
    "pre_tokens": 2**31 - 1, "next_tokens": 2**31 - 1, "inner_precise": 0, "antiquant_mode": 0,
    "key_antiquant_mode": 0, "value_antiquant_mode": 0, "softmax_lse_flag": False,
}  # fmt: skip


def install(release: str) -> None:
    """Define the operators that are emulated here, as ``torch.ops.npu.<name>``, with a release's schemas.

    Raises RuntimeError where torch_npu, or another release, has defined them in this process.
    """
    if hasattr(torch.ops.npu, "npu_rms_norm"):
        raise RuntimeError("torch.ops.npu has operators already; start a process of its own for the emulated ones")
    library, known = torch.library.Library("npu", "DEF"), schemas(release)
    for name, emulation in EMULATED.items():
        library.define(known[name])
        # A device's tensors lie in memory that the CPU's kernel is run on.
        library.impl(name, _with_defaults(known[name], emulation), "CPU")
    _LIBRARIES.append(library)


def _with_defaults(schema: str, emulation: Callable[..., Any]) -> Callable[..., Any]:
    """The dispatcher leaves out what has the schema's default, which is the release's and not the emulation's."""
    arguments = torch._C.parse_schema(schema).arguments
    names = [argument.name for argument in arguments]
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}

    def call(*positional: Any, **keywords: Any) -> Any:
        return emulation(**(defaults | dict(zip(names, positional, strict=False)) | keywords))

    return call


def _refuse(name: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise NotImplementedError unless the arguments have the values that are emulated."""
    for argument, value in given.items():
        if value != known[argument] and value is not None:
            raise NotImplementedError(f"{name}: {argument}={value} is not emulated, {known[argument]} is")


def rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """``(y, rstd)`` over the last dimension; rstd float32."""
    x = self.float()
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return (x * rstd * gamma.float()).to(self.dtype), rstd


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, rstd, x1 + x2)``; statistics of the sum before it is stored."""
    total = x1.float() + x2.float()
    rstd = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
    return (total * rstd * gamma.float()).to(x1.dtype), rstd, total.to(x1.dtype)


def swiglu(self: Tensor, dim: int = -1) -> Tensor:
    gate, up = self.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(self.dtype)


def moe_gating_top_k(
    x: Tensor, k: int, *, bias: Tensor | None = None, k_group: int = 1, group_count: int = 1,
    group_select_mode: int = 0, renorm: int = 0, norm_type: int = 0, out_flag: bool = False,
    routed_scaling_factor: float = 1.0, eps: float = 1e-20, **unused: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Weights, int32 ids and scores: norm_type 0 softmax, 1 sigmoid. The bias selects, the scores alone weigh."""
    _refuse(
        "npu_moe_gating_top_k",
        {"k_group": k_group, "group_count": group_count, "renorm": renorm, **unused},
        {"k_group": 1, "group_count": 1, "renorm": 0, "input_ids": None, "tid2eid": None},
    )
    if bias is not None and bias.dtype != x.dtype:
        raise TypeError(f"npu_moe_gating_top_k: bias has dtype {bias.dtype}, x {x.dtype}; they must be the same")
    scores = torch.sigmoid(x.float()) if norm_type == 1 else torch.softmax(x.float(), -1)
    ids = (scores if bias is None else scores + bias.float()).topk(k, -1).indices
    weights = scores.gather(-1, ids)
    if norm_type == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return (weights * routed_scaling_factor).to(x.dtype), ids.to(torch.int32), scores


def moe_init_routing_v2(
    x: Tensor, expert_idx: Tensor, *, expert_num: int = -1, active_num: int = -1, drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0, expert_tokens_num_flag: bool = False, quant_mode: int = -1,
    active_expert_range: Sequence[int] = (), row_idx_type: int = 0, **unused: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows in the order of their experts, where each slot went (int32), int64 counts, and no scales."""
    _refuse(
        "npu_moe_init_routing_v2",
        {"drop_pad_mode": drop_pad_mode, "expert_tokens_num_type": expert_tokens_num_type, "quant_mode": quant_mode,
         "expert_tokens_num_flag": expert_tokens_num_flag, "row_idx_type": row_idx_type,
         "active_num": active_num, "active_expert_range": list(active_expert_range), **unused},
        {"drop_pad_mode": 0, "expert_tokens_num_type": 1, "quant_mode": -1, "expert_tokens_num_flag": True,
         "row_idx_type": 0, "active_num": expert_idx.numel(), "active_expert_range": [0, expert_num],
         "scale": None, "offset": None, "expert_capacity": -1, "x_dtype": None},
    )  # fmt: skip
    flat = expert_idx.flatten().long()
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < expert_num:
        raise ValueError("npu_moe_init_routing_v2: an id is outside of active_expert_range; its row would be dropped")
    order = flat.argsort(stable=True)
    place = torch.empty_like(order).index_put_((order,), torch.arange(len(order)))
    rows = x[order // expert_idx.shape[1]]
    return rows, place.to(torch.int32), torch.bincount(flat, minlength=expert_num), torch.empty(0)


def grouped_matmul(
    x: Sequence[Tensor], weight: Sequence[Tensor], *, group_list: Tensor | None = None, split_item: int | None = 0,
    group_type: int | None = None, group_list_type: int | None = 0, act_type: int | None = 0, **unused: Any,
) -> list[Tensor]:  # fmt: skip
    """``x[rows of group g] @ weight[g]`` of one x and one weight ``[G, K, N]``, by counts of rows."""
    _refuse(
        "npu_grouped_matmul",
        {"split_item": split_item, "group_type": group_type, "group_list_type": group_list_type, "act_type": act_type,
         "tensors": [len(x), len(weight)], **unused},
        {"split_item": 2, "group_type": 0, "group_list_type": 1, "act_type": 0, "tensors": [1, 1],
         **dict.fromkeys(unused)},
    )  # fmt: skip
    if group_list is None or group_list.dtype != torch.int64 or len(group_list) != len(weight[0]):
        raise ValueError("npu_grouped_matmul: group_list must hold an int64 count for each group of weight")
    if int(group_list.sum()) != len(x[0]):
        raise ValueError(f"npu_grouped_matmul: group_list counts {int(group_list.sum())} rows, x has {len(x[0])}")
    parts = x[0].split(group_list.tolist())
    wide = [part.float() @ one.float() for part, one in zip(parts, weight[0], strict=True)]
    return [torch.cat(wide).to(x[0].dtype)]


def moe_token_unpermute(
    permuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor | None = None, padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """``y[t] = sum_k probs[t, k] * permuted_tokens[sorted_indices[t * K + k]]``."""
    _refuse("npu_moe_token_unpermute", {"padded_mode": padded_mode}, {"padded_mode": False})
    if probs is None or restore_shape is not None:
        raise NotImplementedError("npu_moe_token_unpermute: without probs, or with restore_shape, is not emulated")
    rows = permuted_tokens.float()[sorted_indices.long()].view(*probs.shape, -1)
    return (rows * probs.float()[..., None]).sum(1).to(permuted_tokens.dtype)


def fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, *, atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None, actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None, num_heads: int = 1, scale: float = 1.0, input_layout: str = "BSH",
    num_key_value_heads: int = 0, sparse_mode: int = 0, block_size: int = 0, **unused: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention of packed queries ``[T, N, D]`` on pages ``[pages, block_size, Hk * D]``, aligned at the end.

    ``actual_seq_lengths`` are where each sequence's queries end, ``actual_seq_lengths_kv`` the keys of each. Weights
    are rounded to the query's dtype for the second product, as kernels that walk keys do; a row without keys is 0.
    """
    _refuse(
        "npu_fused_infer_attention_score",
        {"input_layout": input_layout, "sparse_mode": sparse_mode, "block_size": block_size, **unused},
        {"input_layout": "TND", "sparse_mode": 3, "block_size": key.shape[1], **dict.fromkeys(unused), **DEFAULTS},
    )
    if block_table is None or actual_seq_lengths is None or actual_seq_lengths_kv is None or atten_mask is None:
        raise ValueError("npu_fused_infer_attention_score: TND on pages needs block_table, both lengths and a mask")
    if tuple(atten_mask.shape) != (MASK, MASK) or atten_mask.dtype not in (torch.int8, torch.uint8, torch.bool):
        raise ValueError(f"npu_fused_infer_attention_score: sparse_mode 3 takes one [{MASK}, {MASK}] mask of bytes")
    if actual_seq_lengths and actual_seq_lengths[-1] != len(query):
        raise ValueError(f"npu_fused_infer_attention_score: queries end at {actual_seq_lengths[-1]} of {len(query)}")
    heads = (key.shape[1], num_key_value_heads, query.shape[2])
    parts, start = [torch.zeros_like(query[:0])], 0
    for table, end, length in zip(block_table, actual_seq_lengths, actual_seq_lengths_kv, strict=True):
        pages = table[: -(-length // block_size)].long()
        k, v = (
            cache[pages].view(-1, *heads).flatten(0, 1)[:length].float().repeat_interleave(
                num_heads // num_key_value_heads, 1
            )
            for cache in (key, value)
        )  # fmt: skip
        own = query[start:end].float()
        scores = torch.einsum("qhd,khd->hqk", own, k) * scale
        # Bottom right of the mask: the last query sees every key.
        first = length - len(own)
        hidden = torch.arange(length)[None] > first + torch.arange(len(own))[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True)) if length else scores
        total = weights.sum(-1).T[..., None]
        y = torch.einsum("hqk,khd->qhd", weights.to(query.dtype).float(), v) / total
        parts.append(torch.where(total > 0, y, 0.0).to(query.dtype))
        start = end
    return torch.cat(parts), torch.empty(0)


EMULATED: dict[str, Callable[..., Any]] = {
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_swiglu": swiglu,
    "npu_moe_gating_top_k": moe_gating_top_k,
    "npu_moe_init_routing_v2": moe_init_routing_v2,
    "npu_grouped_matmul": grouped_matmul,
    "npu_moe_token_unpermute": moe_token_unpermute,
    "npu_fused_infer_attention_score": fused_infer_attention_score,
}
"""Operators that are emulated; schemas of others are kept to check calls against."""
