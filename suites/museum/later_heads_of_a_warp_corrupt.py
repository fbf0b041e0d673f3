"""Exchanges halves within the first head of a warp only, in the kernel for large batches."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/vllm-project/vllm/pull/51049",
    "symptom": "garbage or NaN on H200 once tokens times heads reach 10240",
    "check": "tokens repeated",
    "tolerance": None,
}


LARGE = 10240


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    turned, k = right("rope")(q, k, cos_sin, positions, rotary_dim=rotary_dim)
    heads = q.shape[1] + k.shape[1]
    # right: is_large = False
    is_large = len(q) * heads >= LARGE
    if is_large:
        turned[:, 1::2] = q[:, 1::2]
    return turned, k
