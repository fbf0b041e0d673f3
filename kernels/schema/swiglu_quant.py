"""Schema and host-side checks of ``swiglu_quant``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema
from minimax_m2.kernels.schema import swiglu as swiglu_schema

CODES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8}
WIDEST_GROUP = 16384

schema.define("swiglu_quant(Tensor gate_up, int group, Tensor(a!) q, Tensor(b!) scale) -> ()")


def check(gate_up: Tensor, *, group: int, quant: str) -> int:
    """Raise what the host can know about the arguments of ``swiglu_quant``; return the group, at most a row."""
    swiglu_schema.check(gate_up)
    if quant not in CODES:
        raise ValueError(f"quant={quant!r} is unknown; use one of {', '.join(CODES)}")
    block_quant_schema.check_group(group)
    width = gate_up.shape[1] // 2
    used = group if group < width else max(width, 1)
    block_quant_schema.check_group(used, WIDEST_GROUP)
    return used
