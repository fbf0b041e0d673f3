"""How much of a model's time an op is: calls in a step of MiniMax-M2 times the least time of its timed shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from minimax_m2.harness.history.panel import BALANCE, Panel
from minimax_m2.harness.op import Cost, all_ops

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
    """For each series, its op's share of a step of its shape by roof times; 0 for what no step of M2 calls.

    Ops of a step that the lane has not timed count by their bytes and flops, at the pace of those that it has.
    """
    roofs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, one in enumerate(panel.series):
        known = panel.roof_us[row][np.isfinite(panel.roof_us[row])]
        if len(known):
            roofs[one.op.split(".")[0], one.shape].append(float(np.median(known)))
    least = {key: float(np.median(values)) for key, values in roofs.items()}
    pace = _pace(least)
    step = {shape: sum(CALLS[op] * _least(least, pace, op, shape) for op in PATH) for _, shape in least}
    return [
        CALLS.get(op, 0) * least[op, one.shape] / step[one.shape]
        if (op, one.shape) in least and step[one.shape]
        else 0.0
        for one in panel.series
        if (op := one.op.split(".")[0])
    ]


def _cost(op: str, shape: str) -> Cost | None:
    """What a timed shape costs, None for what is declared nowhere."""
    declared = all_ops().get(op)
    return None if declared is None or shape not in declared.shapes else declared.cost(declared.shape(shape))


def _pace(least: Mapping[tuple[str, str], float]) -> tuple[float, float]:
    """Microseconds a byte and a flop, 0 where no timed op is bound by them."""
    known = [(us, cost) for (op, shape), us in least.items() if (cost := _cost(op, shape)) and cost.bytes]
    by_byte = min((us / cost.bytes for us, cost in known), default=0.0)
    bound = (us / cost.flops for us, cost in known if cost.flops / cost.bytes >= BALANCE)
    return by_byte, min(bound, default=0.0)


def _least(least: Mapping[tuple[str, str], float], pace: tuple[float, float], op: str, shape: str) -> float:
    if (op, shape) in least:
        return least[op, shape]
    cost = _cost(op, shape)
    return 0.0 if cost is None else max(pace[0] * cost.bytes, pace[1] * cost.flops)
