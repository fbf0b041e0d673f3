"""The experts of a mixture: gate and up, SwiGLU, down, weighted sum."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.reference.block_dequant import block_dequant
from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.linear import in_dtype
from minimax_m2.reference.quantised_product import Operand, operand, product
from minimax_m2.reference.routing import unpack_routing
from minimax_m2.reference.swiglu import swiglu


class PackedExperts(NamedTuple):
    """Experts' weights in the checkpoint's layout; weights without scales have empty ones."""

    w13: Tensor  # [E, 2*I, H], rows of w1 (gate), then of w3 (up); e4m3, int8 or the model's dtype
    w2: Tensor  # [E, H, I]
    w13_scale: Tensor  # [E, ceil(2*I/rows), ceil(H/columns)] float32, or [0]
    w2_scale: Tensor  # [E, ceil(H/rows), ceil(I/columns)] float32, or [0]
    block: Tensor  # [2] int64: rows, columns; the columns are also the group of quantised activations


def pack_experts(w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
                 block: tuple[int, int] | None = None, contract: Contract = EXACT) -> PackedExperts:  # fmt: skip
    """Keep the weights as they are, both scales or none; ``block`` is (128, 128) unless given, of int8 a row."""
    if (w13_scale is None) != (w2_scale is None):
        raise ValueError("one of w13_scale and w2_scale is None; pass both or neither")
    s13, s2 = (torch.empty(0, device=w13.device) if s is None else s for s in (w13_scale, w2_scale))
    usual = (1, max(w13.shape[-1], w2.shape[-1])) if w13.dtype == torch.int8 else (128, 128)
    return PackedExperts(w13, w2, s13, s2, torch.tensor(block or usual))


def experts(x: Tensor, packed: PackedExperts, weights: Tensor | None, ids: Tensor, *, expert_map: Tensor | None = None,
            x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None,
            contract: Contract = EXACT) -> Tensor:  # fmt: skip
    """Sum each token's experts: ``y[t] = sum_k weights[t, k] * swiglu(x[t] @ w13[e]^T) @ w2[e]^T, e = ids[t, k]``.

    x        [T, H]; e4m3 with x_scale [T, ceil(H/group)], then the working dtype is float32
    weights  [T, K], or None where ids are pack_routing's words
    ids      [T, K]; -1, and ids that expert_map [E] sends to -1, add nothing
    returns  [T, H], working dtype unless out_dtype; rows without experts exactly 0

    Contract (model dtype = bfloat16 or float16):
        dequantised      weights after scaling: bfloat16 in vllm-ascend, at load.
        routing_weights  bfloat16 where they come packed (FlashInfer trtllm_routed).
        activation       x and act before their products, "none" or quantised_product's "e4m3" (vLLM, SGLang, DeepGEMM
                         W8A8) or "int8" (int8 weights only; SGLang cpu: sums of integers, exact), with its fields.
        gate_up          model dtype: vLLM and SGLang Triton, SGLang cpu FP8; float32: SGLang cpu bf16 (AMX).
        silu, act        swiglu's ``silu`` (model dtype: vLLM Triton only) and ``out`` (model dtype: all).
        down, weighted   an expert's row before (model dtype: transformers) and after its weight (model dtype: Triton).
        combine, out     each running sum over K, the result. combine: None, float32; model dtype: transformers.
    """
    if weights is None:
        weights, ids = unpack_routing(ids)
    weights, block = rounded(weights, contract.routing_weights), (int(packed.block[0]), int(packed.block[1]))
    if x_scale is not None:
        x = block_dequant(x, x_scale, block=(1, block[1]), dtype=torch.float32)
    x_in = Operand(x) if x_scale is not None else operand(x, packed.w13, group=block[1], contract=contract)
    multiplied = functools.partial(product, block=block, dtype=x.dtype, contract=contract)
    local = ids if expert_map is None else expert_map[ids.long().clamp(min=0)].masked_fill(ids < 0, -1)
    # Slots without an expert point to row 0.
    parts, place = [torch.zeros_like(x[:1])], torch.zeros_like(local, dtype=torch.int64)
    for e in local[local >= 0].unique().tolist():
        t, k = (local == e).nonzero(as_tuple=True)
        s13, s2 = (s[e] if s.numel() else s for s in (packed.w13_scale, packed.w2_scale))
        act = swiglu(rounded(multiplied(x_in.rows(t), packed.w13[e], s13), contract.gate_up),
                     contract=Contract({"silu": contract.silu, "out": contract.act}))  # fmt: skip
        act_in = operand(act, packed.w2, group=block[1], contract=contract)
        down = rounded(multiplied(act_in, packed.w2[e], s2), contract.down)
        place[t, k] = torch.arange(len(t), device=place.device) + sum(part.shape[0] for part in parts)
        parts.append(rounded(down * weights[t, k][:, None], contract.weighted))
    terms = torch.cat(parts, 0)[place.flatten()].reshape(*local.shape, x.shape[-1]).unbind(1)
    y = functools.reduce(lambda total, term: rounded(total + term, contract.combine), terms)
    return in_dtype(rounded(y, contract.out), out_dtype or x.dtype)
