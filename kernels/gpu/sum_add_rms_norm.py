"""Sum of rows over ranks, residual addition, RMSNorm and, where asked, quantisation: one launch of CUDA C++."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit
from minimax_m2.kernels.gpu.launch import capability, on_device_of, overlaps
from minimax_m2.kernels.gpu.mailbox import Mailbox
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema
from minimax_m2.kernels.schema import add_rms_norm_quant as add_rms_norm_quant_schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema

# Channels that share a scale, and bytes that are a thread's at a time.
GROUP, CHUNK = 128, 8
MOST_CHUNKS = 2048
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Row(ctypes.Structure):
    """What is summed and where it goes, as ``sum_add_rms_norm.cu`` declares it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "y", "residual_out", "q", "scale")),
        ("x_stride", ctypes.c_longlong), ("residual_stride", ctypes.c_longlong),
        ("width", ctypes.c_int), ("eps", ctypes.c_float),
    ]  # fmt: skip


def architecture(capability: int) -> str:
    """The newest one that the unit is compiled for and a GPU of this capability runs."""
    return max((name for name in toolkit.ARCHITECTURES["sum_add_rms_norm"] if int(name) <= capability), key=int)


def words_of(width: int, dtype: torch.dtype) -> int:
    """Words of a row: 32 bits each."""
    return width * dtype.itemsize // 4


def fits(width: int, dtype: torch.dtype, *, group: int | None = None) -> bool:
    """Whether rows can be cut into a program's runs of eight bytes, and those into groups where codes are asked for."""
    size = width * dtype.itemsize
    whole = dtype in DTYPES and size % CHUNK == 0 and size // CHUNK <= MOST_CHUNKS
    return whole and (group is None or (group == GROUP and width % GROUP == 0 and dtype.itemsize == 2))


def sum_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, mailbox: Mailbox, *, eps: float, place: int
) -> tuple[Tensor, Tensor]:
    """Add up every rank's ``x``, add that to the residual stream, and normalise.

        z = residual + sum over ranks of x;  y = z * rsqrt(mean(z^2) + eps) * weight

    x         [T, H] float32, bfloat16 or float16, this rank's share, row stride free; T up to the mailbox's rows
    residual  [T, H] dtype of x, the same on all ranks
    weight    [H] dtype of x
    place     a number below 2^24 that names this sum, the same on all ranks
    returns   y, z, each [T, H] dtype of x, contiguous, with the same bits on all ranks

    Shares travel as they are and are summed in float32, in the order of the ranks. A row that a rank has not sent when
    the mailbox's patience ends is NaN.

    Raises ValueError or TypeError for shapes, dtypes, strides, devices and sizes outside the above.
    """
    add_rms_norm_schema.check(x, residual, weight)
    _check(x, residual, weight, mailbox, group=None)

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _launch(x, residual, weight, mailbox, eps, place, residual_out, y=y)
    return y, residual_out


def sum_add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, mailbox: Mailbox, *, eps: float, place: int, group: int = GROUP
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise ``y`` of ``sum_add_rms_norm``: q [T, H] e4m3, scale [T, H/128] float32, residual [T, H] dtype of x.

    x is bfloat16 or float16, H a multiple of 128. y stays in float32 and meets the rounded reciprocal of its scale.

    Raises ValueError or TypeError for shapes, dtypes, strides, devices and sizes outside the above.
    """
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)
    _check(x, residual, weight, mailbox, group=group)

    q, scale = block_quant_schema.allocated(*x.shape, group=group, dtype=torch.float8_e4m3fn, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if q.numel() > 0:
        _launch(x, residual, weight, mailbox, eps, place, residual_out, q=q, scale=scale)
    return q, scale, residual_out


def _check(x: Tensor, residual: Tensor, weight: Tensor, mailbox: Mailbox, *, group: int | None) -> None:
    rows, width = x.shape
    if rows > mailbox.rows or words_of(width, x.dtype) != mailbox.words:
        raise ValueError(
            f"x has {rows} rows of {words_of(width, x.dtype)} words; the mailbox takes up to {mailbox.rows} of "
            f"{mailbox.words}; sum it by a collective"
        )
    if not fits(width, x.dtype, group=group):
        raise ValueError(f"rows of {width} {x.dtype} in groups of {group} cannot be cut; sum them by a collective")
    for name, value in (("x", x), ("residual", residual), ("weight", weight)):
        apart = value.stride(0) * value.element_size() if value.dim() == 2 and rows > 1 else 0
        if value.data_ptr() % CHUNK or apart % CHUNK:
            raise ValueError(f"rows of {name} begin at no multiple of {CHUNK} bytes; call .clone()")


def _launch(
    x: Tensor, residual: Tensor, weight: Tensor, mailbox: Mailbox, eps: float, place: int, residual_out: Tensor, *,
    y: Tensor | None = None, q: Tensor | None = None, scale: Tensor | None = None,
) -> None:  # fmt: skip
    arch = capability(x)
    library = toolkit.loaded("sum_add_rms_norm", architecture(arch))
    row = Row(
        x=x.data_ptr(), residual=residual.data_ptr(), weight=weight.data_ptr(), residual_out=residual_out.data_ptr(),
        y=_place(y), q=_place(q), scale=_place(scale), x_stride=x.stride(0), residual_stride=residual.stride(0),
        width=x.shape[1], eps=eps,
    )  # fmt: skip
    with on_device_of(x):
        wrong = library.minimax_m2_sum_add_rms_norm(
            DTYPES[x.dtype], ctypes.byref(row), ctypes.byref(mailbox.at(place)), x.shape[0], int(overlaps(arch)),
            ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
        )  # fmt: skip
    if wrong:
        library.minimax_m2_error.restype = ctypes.c_char_p
        said = library.minimax_m2_error(wrong).decode()
        raise RuntimeError(f"sum_add_rms_norm of {list(x.shape)} was not launched: {said} (CUDA error {wrong})")


def _place(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
