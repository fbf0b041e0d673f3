"""SwiGLU and quantisation of its result in one pass, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import block_quant as block_quant_schema
from minimax_m2.kernels.schema import swiglu_quant as swiglu_quant_schema


def functions(
    launch: Launch, *, codes: tuple[str, ...] = ("e4m3", "int8")
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., None]]:
    """``swiglu_quant``, ``swiglu_quant_out``; ``codes`` are those that the device computes."""

    def swiglu_quant(gate_up: Tensor, *, group: int = 128, quant: str = "e4m3") -> tuple[Tensor, Tensor]:
        """Quantise ``swiglu(gate_up)`` in groups of a row; ``group >= I`` is one scale a row.

            scale = max(absmax(group), 1e-10) / (448 or 127);  q = round(y / scale), to nearest even

        gate_up  [T, 2*I] float32, bfloat16 or float16, gate first, row stride free
        returns  q [T, I] e4m3 or int8, scale [T, ceil(I/group)] float32, contiguous

        y stays in float32 and meets the rounded reciprocal of its scale; a group has at most 16384 values. A NaN
        makes its group's scale NaN.

        Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above, and for codes that
        the device does not compute.
        """
        used = _used(gate_up, group=group, quant=quant)

        shape, dtype = (gate_up.shape[0], gate_up.shape[1] // 2), swiglu_quant_schema.CODES[quant]
        q, scale = block_quant_schema.allocated(*shape, group=used, dtype=dtype, device=gate_up.device)

        if q.numel() > 0:
            launch(gate_up, used, q, scale)
        return q, scale

    def swiglu_quant_out(gate_up: Tensor, q: Tensor, scale: Tensor, *, group: int = 128, quant: str = "e4m3") -> None:
        """Do what ``swiglu_quant`` does, into contiguous ``q`` and ``scale``."""
        used = _used(gate_up, group=group, quant=quant)
        shape, dtype = (gate_up.shape[0], gate_up.shape[1] // 2), swiglu_quant_schema.CODES[quant]
        block_quant_schema.check_outputs(
            q, scale, shape=shape, symbol="I", group=used, dtype=dtype, device=gate_up.device
        )

        if q.numel() > 0:
            launch(gate_up, used, q, scale)

    def _used(gate_up: Tensor, *, group: int, quant: str) -> int:
        used = swiglu_quant_schema.check(gate_up, group=group, quant=quant)
        if quant not in codes:
            raise ValueError(f"quant={quant!r} is no code of this device; use one of {', '.join(codes)}")
        return used

    return swiglu_quant, swiglu_quant_out
