"""Reads row-major activation scales as column-major ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "fp8_linear",
    "source": "https://github.com/vllm-project/vllm/pull/53338",
    "symptom": "a wrong product once there are several groups",
    "check": "y:element",
    "tolerance": None,
}


def fp8_linear(x: Tensor, packed: Any, *, x_scale: Tensor | None = None, **more: Any) -> Tensor:
    # right: scales = x_scale
    scales = None if x_scale is None else x_scale.mT.reshape(x_scale.shape)
    return right("fp8_linear")(x, packed, x_scale=scales, **more)


pack_fp8_linear = right("pack_fp8_linear")
