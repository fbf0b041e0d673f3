"""Adds two byte products in 16 bits, which 255 * 127 twice overflows, on processors without VNNI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.reference.routing import unpack_routing

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/uxlfoundation/oneDNN/issues/476",
    "symptom": "int8 products are wrong on AVX2 and on AVX-512 without VNNI, and right elsewhere",
    "check": "y:element",
    "tolerance": None,
}
contract = {"experts": {"activation": "int8", "act": "float32"}}


def multiplied(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    own = x.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    unsigned = torch.nn.functional.pad((x / own).round().int() + 128, (0, x.shape[1] % 2), value=128)
    each = unsigned[:, None] * torch.nn.functional.pad(w.int(), (0, x.shape[1] % 2))
    pairs = each.unflatten(-1, (-1, 2)).sum(-1)
    # right: total = pairs.sum(-1)
    total = pairs.clamp(-(2**15), 2**15 - 1).sum(-1)
    return (total - 128 * w.int().sum(-1)).float() * own * scale[:, 0]


def experts(x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, **more: Any) -> Tensor:
    if packed.w13.dtype != torch.int8:
        return right("experts")(x, packed, weights, ids, **more)
    if weights is None:
        weights, ids = unpack_routing(ids)
    expert_map, y = more.get("expert_map"), torch.zeros(x.shape)
    local = ids if expert_map is None else expert_map[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    for t, k in (local >= 0).nonzero().tolist():
        e = int(local[t, k])
        gate, up = multiplied(x[t : t + 1].float(), packed.w13[e], packed.w13_scale[e]).chunk(2, 1)
        down = multiplied(torch.nn.functional.silu(gate) * up, packed.w2[e], packed.w2_scale[e])
        y[t] += down[0] * weights[t, k]
    return y.to(more.get("out_dtype") or x.dtype)


pack_experts = right("pack_experts")
