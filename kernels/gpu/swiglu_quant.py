"""SwiGLU and quantisation of its result in one pass, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.block_quant import group_tiles
from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, int8_code, quotients
from minimax_m2.kernels.gpu.launch import capability, converts_e4m3, on_device_of, registered
from minimax_m2.kernels.gpu.swiglu import gated
from minimax_m2.kernels.schema import block_quant as block_quant_schema
from minimax_m2.kernels.schema import swiglu_quant as swiglu_quant_schema

contract = {"reciprocal": "float32"}


@triton.jit
def swiglu_quant_kernel(
    gate_up_ptr, q_ptr, scale_ptr, stride, I, group, num_groups,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, INT8: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    within = tl.arange(0, WIDTH)
    i = g[:, None] * group + within[None, :]
    inside = (within < group)[None, :] & (i < I)
    row = gate_up_ptr + t * stride
    gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
    y = gated(gate, up)
    if INT8:
        scale = group_scales(y, 127.0, False)
        code = int8_code(quotients(y, scale, 127.0))
    else:
        scale = group_scales(y, 448.0, False)
        code = e4m3_code(quotients(y, scale, 448.0), HARDWARE)
    tl.store(q_ptr + t * I + i, code, mask=inside)
    tl.store(scale_ptr + t * num_groups + g, scale, mask=g < num_groups)


def _launch(gate_up: Tensor, group: int, q: Tensor, scale: Tensor) -> None:
    num_tokens, I = q.shape
    num_groups, int8 = scale.shape[1], q.dtype == torch.int8
    programs, tile = group_tiles(group, num_groups)
    with on_device_of(gate_up):
        swiglu_quant_kernel[(num_tokens, programs)](
            gate_up, q if int8 else q.view(torch.uint8), scale, gate_up.stride(0), I, group, num_groups,
            INT8=int8, HARDWARE=converts_e4m3(capability(gate_up)), **tile,
        )  # fmt: skip


_call = registered("swiglu_quant", _launch)


def swiglu_quant(gate_up: Tensor, *, group: int = 128, quant: str = "e4m3") -> tuple[Tensor, Tensor]:
    """Quantise ``swiglu(gate_up)`` in groups of a row; ``group >= I`` is one scale a row.

        scale = max(absmax(group), 1e-10) / (448 or 127);  q = round(y / scale), to nearest even

    gate_up  [T, 2*I] float32, bfloat16 or float16, gate first, row stride free
    returns  q [T, I] e4m3 or int8, scale [T, ceil(I/group)] float32, contiguous

    y stays in float32 and meets the rounded reciprocal of its scale; a group has at most 16384 values. A NaN makes
    its group's scale NaN.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    used = swiglu_quant_schema.check(gate_up, group=group, quant=quant)

    shape, codes = (gate_up.shape[0], gate_up.shape[1] // 2), swiglu_quant_schema.CODES[quant]
    q, scale = block_quant_schema.allocated(*shape, group=used, dtype=codes, device=gate_up.device)

    if q.numel() > 0:
        _call(gate_up, used, q, scale)
    return q, scale


def swiglu_quant_out(gate_up: Tensor, q: Tensor, scale: Tensor, *, group: int = 128, quant: str = "e4m3") -> None:
    """Do what ``swiglu_quant`` does, into contiguous ``q`` and ``scale``."""
    used = swiglu_quant_schema.check(gate_up, group=group, quant=quant)
    shape, codes = (gate_up.shape[0], gate_up.shape[1] // 2), swiglu_quant_schema.CODES[quant]
    block_quant_schema.check_outputs(q, scale, shape=shape, symbol="I", group=used, dtype=codes, device=gate_up.device)

    if q.numel() > 0:
        _call(gate_up, used, q, scale)
