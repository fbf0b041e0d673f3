"""The sum over ranks as a formula: what each rank sends, and what the running sum is rounded to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quotient
from minimax_m2.reference.contract import EXACT, Contract, rounded
from minimax_m2.reference.swiglu_quant import LARGEST_INT8, rounded_int8


def reduced(parts: Sequence[Tensor], *, group: int = 128, contract: Contract = EXACT) -> Tensor:
    """Sum ``parts``, one ``[T, H]`` a rank, in their order.

    Contract:
        partial  a rank's share as it travels. Model dtype: every engine's o_proj and experts; "int8": codes of groups
                 of ``group`` channels with a float32 scale each, vLLM csrc/quickreduce (INT8); None: float32.
        running  each running sum. Model dtype: rings (NCCL, gloo); None, float32: vLLM csrc/custom_all_reduce.cuh.
        out      the sum, model dtype wherever it is stored in it.
    """
    sent = [_sent(part, group, contract) for part in parts]
    total = functools.reduce(lambda running, part: rounded(running + part, contract.running), sent)
    return rounded(total, contract.out)


def _sent(part: Tensor, group: int, contract: Contract) -> Tensor:
    if contract.partial != "int8":
        return rounded(part, contract.partial)
    scale = group_scale(part, group=group, largest=LARGEST_INT8, contract=contract)
    codes = rounded_int8(quotient(part, scale, group=group, contract=contract), None)
    return codes * scale.repeat_interleave(group, -1)[..., : part.shape[-1]]
