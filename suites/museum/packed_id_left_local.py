"""Unpacks ids without adding the first local expert."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "unpack_routing",
    "source": "https://github.com/vllm-project/vllm-gaudi/pull/1796",
    "symptom": "global and local expert ids are confused under expert parallelism (a review disputes where)",
    "check": "ids:element",
    "tolerance": None,
}


def unpack_routing(packed: Tensor, *, expert_start: int = 0) -> tuple[Tensor, Tensor]:
    # right: start = expert_start
    start = 0
    return right("unpack_routing")(packed, expert_start=start)
