"""RMSNorm over the hidden size, on an NPU."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import rms_norm as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.rms_norm_rows import rms_norm_kernel

# Rows are held whole, in float32; more does not fit the unified buffer beside the copies under way.
WIDEST, LANES = 4096, 32
# Channels of a lane at least, 32 bytes: a narrower tile is laid out anew, and ascendnpu-ir 1.2.0 copies it there before
# it is loaded.
NARROWEST = 8


def block_of(H: int) -> int:
    """Channels of a row as it is held, a multiple of the lanes that sum it; ValueError where no program holds it."""
    schema.expect_range("H", H, 0, WIDEST, "a program holds a row in the unified buffer; MiniMax-M2 has 3072")
    return max(LANES * NARROWEST, power_of_two(H))


def _launch(x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    rows, H = x.shape
    rms_norm_kernel[programs(rows, x)](
        x, weight, y, rows, x.stride(0), H, float(H), eps, LANES=LANES, BLOCK=block_of(H)
    )


rms_norm, rms_norm_out = launched.functions(registered("rms_norm", _launch))
