"""Stores with scale 1, because the checkpoint's name of the scale was never mapped to the cache's."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "kv_cache",
    "source": "https://github.com/sgl-project/sglang/pull/20870",
    "symptom": "the KV scale of the checkpoint is ignored",
    "check": "k_cache:element",
    "tolerance": None,
}


def kv_cache(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *,
    k_scale: Tensor | float | None = None, v_scale: Tensor | float | None = None,
) -> None:  # fmt: skip
    # right: scales = {"k_scale": k_scale, "v_scale": v_scale}
    scales = {"k_scale": None, "v_scale": None}
    right("kv_cache")(k, v, k_cache, v_cache, slots, **scales)
