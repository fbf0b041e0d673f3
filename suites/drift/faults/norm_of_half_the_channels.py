"""Takes the root mean square of the first half of the channels."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "post_attention_norm"


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    y, total = right("add_rms_norm")(x.double(), residual.double(), weight.double(), eps=eps)
    half = total[:, : x.shape[1] // 2].square().mean(-1, keepdim=True) + eps
    return (y * ((total.square().mean(-1, keepdim=True) + eps) / half).sqrt()).to(x.dtype), total.to(x.dtype)
