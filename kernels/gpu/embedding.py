"""Look up rows of the embedding table on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import embedding as embedding_schema

COLUMNS = 2048


@triton.jit
def embedding_kernel(ids_ptr, weight_ptr, rows_ptr, stride, V, H, vocab_start, COLUMNS: tl.constexpr,
                     EARLY: tl.constexpr, FOLLOWED: tl.constexpr):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    local = tl.load(ids_ptr + t).to(tl.int64) - vocab_start
    # Masked before the look-up: an id of another shard is no address here.
    here = (local >= 0) & (local < V)
    row = tl.load(weight_ptr + local * stride + h, mask=here & (h < H), other=0.0)
    tl.store(rows_ptr + t * H + h, row, mask=h < H)


def _launch(ids: Tensor, weight: Tensor, vocab_start: int, rows: Tensor) -> None:
    num_tokens, H = rows.shape
    columns = min(COLUMNS, power_of_two(H))
    programs, warps = triton.cdiv(H, columns), min(8, max(1, columns // 256))
    with on_device_of(ids):
        embedding_kernel[(num_tokens, programs)](
            ids, weight, rows, weight.stride(0), weight.shape[0], H, vocab_start,
            COLUMNS=columns, num_warps=warps, **chained(capability(ids), num_tokens * programs * warps),
        )  # fmt: skip


_call = registered("embedding", _launch)


def embedding(ids: Tensor, weight: Tensor, *, vocab_start: int = 0) -> Tensor:
    """Pick ``weight[id - vocab_start]``; ids outside the shard give rows of zeros, to be summed over ranks.

    ids      [T] int32 or int64
    weight   [V of the shard, H] float32, bfloat16 or float16, row stride free: rows vocab_start .. vocab_start + V - 1
    returns  [T, H], dtype of weight, the same bits

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    embedding_schema.check(ids, weight, vocab_start=vocab_start)

    rows = torch.empty((ids.shape[0], weight.shape[1]), dtype=weight.dtype, device=ids.device)

    if rows.numel() > 0:
        _call(ids, weight, vocab_start, rows)
    return rows


def embedding_out(ids: Tensor, weight: Tensor, rows: Tensor, *, vocab_start: int = 0) -> None:
    """Do what ``embedding`` does, into ``rows``, contiguous ``[T, H]``."""
    embedding_schema.check(ids, weight, vocab_start=vocab_start)
    embedding_schema.check_output(rows, ids=ids, weight=weight)

    if rows.numel() > 0:
        _call(ids, weight, vocab_start, rows)
