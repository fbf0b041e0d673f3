"""Schema and host-side checks of ``lm_head``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define("lm_head(Tensor x, Tensor weight, Tensor? rows, Tensor(a!) logits) -> ()")


def check(x: Tensor, weight: Tensor, *, rows: Tensor | None, vocab_size: int) -> None:
    """Raise what the host can know about the arguments of ``lm_head``."""
    schema.expect_shape("x", x, (None, None), "[T, H]")
    schema.expect_dtype("x", x, schema.FLOATS)
    schema.expect_rows("x", x)
    schema.expect_shape("weight", weight, (None, x.shape[1]), "[V, H]")
    schema.expect_dtype("weight", weight, (x.dtype,))
    schema.expect_rows("weight", weight)
    schema.expect_device("weight", weight, x.device)
    schema.expect_range("H", x.shape[1], 1, 2**31 - 1, "x is [T, H]")
    schema.expect_range("vocab_size", vocab_size, 1, weight.shape[0], "weight has that many rows; gather all shards")
    if rows is not None:
        schema.expect_shape("rows", rows, (None,), "[N]")
        schema.expect_dtype("rows", rows, schema.INDICES)
        schema.expect_contiguous("rows", rows)
        schema.expect_device("rows", rows, x.device)


def check_output(logits: Tensor, *, shape: tuple[int, int], device: torch.device) -> None:
    """Raise what the host can know about the tensor that ``lm_head_out`` fills."""
    schema.expect_shape("logits", logits, shape, "[N, V]")
    schema.expect_dtype("logits", logits, (torch.float32,))
    schema.expect_contiguous("logits", logits)
    schema.expect_device("logits", logits, device)
