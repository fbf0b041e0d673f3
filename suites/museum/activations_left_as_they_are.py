"""Multiplies int8 weights by unquantised activations, where the checkpoint asks for a scale a token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.harness.op import find_op
from minimax_m2.reference.contract import Contract

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/vllm-project/vllm/pull/50833",
    "symptom": "dynamic W8A8 runs as W8A16: other numbers than the checkpoint was made for, and slower",
    "check": "y:element",
    "tolerance": None,
}
contract = {"experts": {"activation": "int8", "act": "float32"}}
NOWHERE = dict.fromkeys(find_op("experts").contract(find_op("experts").case()))


def experts(x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, **more: Any) -> Tensor:
    # right: activation = "int8"
    activation = "none"
    made = Contract(NOWHERE | {"activation": activation})
    return right("experts")(x, packed, weights, ids, contract=made, **more)


pack_experts = right("pack_experts")
