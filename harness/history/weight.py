"""How much of a model's time an op is: calls in a step of MiniMax-M2 times the least time of its timed shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from minimax_m2.harness.history.panel import Panel

LAYERS = 62
# Calls in a step. An op that is another way to do the same (a fusion, its parts, another dtype) has calls of its own.
CALLS: Mapping[str, int] = {
    "embedding": 1, "rms_norm": 1, "lm_head": 1,
    **dict.fromkeys(
        (
            "qk_norm_rope_cache", "qk_norm_rope", "qk_sum_squares", "rope", "kv_cache", "attention", "router",
            "router_gemm", "routing", "moe_align", "experts", "swiglu", "swiglu_quant", "pack_routing",
            "unpack_routing",
        ), LAYERS
    ),
    **dict.fromkeys(("add_rms_norm", "add_rms_norm_quant", "linear", "fp8_linear", "block_quant"), 2 * LAYERS),
}  # fmt: skip
# One way through a layer: what the shares are shares of.
PATH = (
    "embedding",
    "add_rms_norm",
    "linear",
    "qk_norm_rope_cache",
    "attention",
    "router",
    "experts",
    "rms_norm",
    "lm_head",
)


def shares(panel: Panel) -> list[float]:
    """For each series, its op's share of a step of its shape by roof times; 0 for what no step of M2 calls."""
    roofs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, one in enumerate(panel.series):
        known = panel.roof_us[row][np.isfinite(panel.roof_us[row])]
        if len(known):
            roofs[one.op.split(".")[0], one.shape].append(float(np.median(known)))
    least = {key: float(np.median(values)) for key, values in roofs.items()}
    step = {shape: _step(least, shape, PATH) for _, shape in least}
    return [
        CALLS.get(op, 0) * least[op, one.shape] / step[one.shape]
        if (op, one.shape) in least and step[one.shape]
        else 0.0
        for one in panel.series
        if (op := one.op.split(".")[0])
    ]


def _step(least: Mapping[tuple[str, str], float], shape: str, path: Sequence[str]) -> float:
    known = sum(CALLS[op] * least[op, shape] for op in path if (op, shape) in least)
    # Where no op of the path was timed, every op is a share of all that was.
    return known or sum(CALLS.get(op, 0) * us for (op, at), us in least.items() if at == shape)
