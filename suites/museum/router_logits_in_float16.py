"""Chooses experts by float16 logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "router",
    "source": "https://github.com/sgl-project/sglang/pull/25835",
    "symptom": "logits differ by 1e-4, ids flip, GPQA falls from 88 to 74..82",
    "check": "weights:element",
    "tolerance": None,
}


def router(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    logits = right("router_gemm")(x, weight)
    # right: seen = logits
    seen = logits.to(torch.float16)
    return right("routing")(seen, bias, **choice)
