"""Choose experts and weigh them; pack the choice into one word."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.composites import renormalise, softmax
from minimax_m2.reference.contract import EXACT, Contract, rounded


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
    scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32,
    num_valid: Tensor | None = None, contract: Contract = EXACT,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Select the ``top_k`` experts by score plus bias; weigh them by score alone.

        s = sigmoid(logits);  ids = top_k(s + bias);  w = scale * s[ids] / (sum(s[ids]) + eps)

    logits     [T, E]
    bias       [E], for selection only, or None
    num_valid  int32 scalar: rows from there on get ids -1 and weights 0
    returns    weights [T, K] float32 (float64 stays), ids [T, K]; of equal scores the lower id

    Contract: ``logits, scores, selection (score + bias), weights``: float32 in vLLM topk_sigmoid, SGLang topk.py.
    Raises ValueError if top_k is outside 1..E or scoring is unknown. Source: transformers MiniMaxM2TopKRouter.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k={top_k} is outside 1..{logits.shape[-1]}, the number of experts; MiniMax-M2 uses 8")
    scores, selection = selection_scores(logits, bias, scoring=scoring, contract=contract)
    # A stable sort, unlike topk, promises the lower id among equals.
    ids = selection.sort(stable=True, dim=-1, descending=True).indices[..., :top_k].to(indices_dtype)
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(ids.shape[0], device=ids.device) >= num_valid)[:, None], -1)
    return weights_at(scores, ids, renormalize=renormalize, scale=scale, eps=eps, contract=contract), ids


def selection_scores(
    logits: Tensor, bias: Tensor | None, *, scoring: str = "sigmoid", contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Score every expert: the score that weighs and the biased one that selects, each ``[T, E]``."""
    logits = rounded(logits.to(torch.promote_types(logits.dtype, torch.float32)), contract.logits)
    if scoring not in ("sigmoid", "softmax"):
        raise ValueError(f"scoring={scoring!r} is unknown; use 'sigmoid' or 'softmax'")
    scores = rounded(torch.sigmoid(logits) if scoring == "sigmoid" else softmax(logits), contract.scores)
    return scores, scores if bias is None else rounded(scores + bias, contract.selection)


def weights_at(
    scores: Tensor, ids: Tensor, *, renormalize: bool = True, scale: float = 1.0, eps: float = 0.0,
    contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Weigh the experts ``ids [T, K]`` (-1: weight 0) by ``scores [T, E]``."""
    weights = scores.gather(-1, ids.long().clamp(min=0))
    if renormalize:
        weights = renormalise(weights, eps=eps)
    return rounded(weights if scale == 1.0 else weights * scale, contract.weights).masked_fill(ids < 0, 0.0)


def pack_routing(weights: Tensor, ids: Tensor, *, expert_start: int = 0, contract: Contract = EXACT) -> Tensor:
    """Pack ``(id - expert_start) << 16 | bits of bf16(weight)``: ``[T, K]`` int32, FlashInfer trtllm_routed's format.

    An id below ``expert_start`` (-1 too) becomes a negative word. Nothing rounds but the bf16 of the format.
    """
    local = torch.where(ids < expert_start, -1, ids - expert_start).to(torch.int32)
    bits = weights.to(torch.bfloat16).view(torch.int16).to(torch.int32)
    # The mask keeps a negative weight's sign from overwriting the id.
    return local << 16 | bits & 0xFFFF


def unpack_routing(packed: Tensor, *, expert_start: int = 0, contract: Contract = EXACT) -> tuple[Tensor, Tensor]:
    """Unpack ``pack_routing``'s words into weights ``[T, K]`` float32 and ids ``[T, K]`` int32, -1 = no expert."""
    local = packed >> 16
    weights = (packed << 16).view(torch.float32)
    return weights, torch.where(local < 0, -1, local + expert_start).to(torch.int32)
