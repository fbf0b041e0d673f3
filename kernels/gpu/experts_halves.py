"""Gate and up, and down, of ``experts`` with 16-bit weights by ``experts_halves.cu``: most experts are read once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit
from minimax_m2.kernels.gpu.gathered_rows import gathered_tokens
from minimax_m2.kernels.gpu.launch import multiprocessors
from minimax_m2.kernels.gpu.moe_align import moe_align

# Channels of a step, and the slots that an expert's are rounded up to.
STEP, BLOCK = 64, 16
# From so many slots an expert, on average, it was ahead of Triton's tiles, of 32 and of 256 experts.
FEWEST_SLOTS = 64
# Columns of a pair of programs, slots that it holds, and pairs that keep half of a large GPU busy.
PAIR_COLUMNS, MOST_SLOTS, FEWEST_PAIRS = 256, 160, 33

_KINDS = {torch.bfloat16: 0, torch.float16: 1}


class Experts(ctypes.Structure):
    """The arguments of the kernel, as its source declares them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "sorted_slots", "counts", "words", "weights", "act", "rows", "taken", "made",
        )),
        *((name, ctypes.c_int) for name in ("hidden", "width", "num_experts")),
    ]  # fmt: skip


def by_halves(hidden: int, width: int, *, capability: int, compiler: str | None, halves: bool, aligned: bool) -> bool:
    """Whether experts can take the kernel: 16-bit weights, whole steps, rows that are copied 16 bytes at once."""
    return halves and aligned and hidden % STEP == 0 and width % STEP == 0 and capability == 90 and compiler is not None


def halves_win(num_slots: int, num_experts: int, width: int) -> bool:
    """Whether experts have slots enough that each is worth a wide tile, and are enough to keep the GPU busy."""
    slots = -(-num_slots // num_experts)
    pairs = num_experts * -(-slots // MOST_SLOTS) * -(-width // PAIR_COLUMNS)
    return num_slots >= FEWEST_SLOTS * num_experts and pairs >= FEWEST_PAIRS


def launch_halves(
    x: Tensor, packed: list[Tensor], weights: Tensor | None, ids: Tensor, expert_map: Tensor | None, y: Tensor
) -> None:
    """Write the weighted row of every slot."""
    w13, w2, *_ = packed
    num_experts, H, I = w2.shape
    # Tickets that were taken, and tiles of act by expert.
    counters = torch.zeros(1 + num_experts, dtype=torch.int32, device=x.device)
    # Words of pack_routing hold the id in their upper half.
    plain_ids = (ids >> 16).contiguous() if weights is None else ids
    sorted_slots, _, _, counts = moe_align(plain_ids, num_experts=num_experts, block=BLOCK, expert_map=expert_map)
    rows = gathered_tokens(x, sorted_slots, ids.numel(), ids.shape[1])
    act = torch.empty((len(sorted_slots), I), dtype=x.dtype, device=x.device)
    arguments = Experts(
        sorted_slots=sorted_slots.data_ptr(), counts=counts.data_ptr(),
        words=ids.data_ptr() if weights is None else None, weights=None if weights is None else weights.data_ptr(),
        act=act.data_ptr(), rows=y.data_ptr(), taken=counters.data_ptr(), made=counters[1:].data_ptr(), hidden=H,
        width=I, num_experts=num_experts,
    )  # fmt: skip
    library = toolkit.loaded("experts_halves", "90a")
    wrong = library.minimax_m2_experts_halves(
        _KINDS[x.dtype], ctypes.c_void_p(rows.data_ptr()), ctypes.c_longlong(len(rows)),
        ctypes.c_void_p(w13.data_ptr()), ctypes.c_void_p(w2.data_ptr()), ctypes.byref(arguments),
        multiprocessors(x.device), ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
    )  # fmt: skip
    toolkit.demand_launched(library, wrong, f"experts_halves of {ids.numel()} slots")
