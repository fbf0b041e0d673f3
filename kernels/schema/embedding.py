"""Schema and host-side checks of ``embedding``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema

schema.define("embedding(Tensor ids, Tensor weight, int vocab_start, Tensor(a!) rows) -> ()")


def check(ids: Tensor, weight: Tensor, *, vocab_start: int) -> None:
    """Raise what the host can know about the arguments of ``embedding``."""
    schema.expect_shape("ids", ids, (None,), "[T]")
    schema.expect_dtype("ids", ids, schema.INDICES)
    schema.expect_contiguous("ids", ids)
    schema.expect_shape("weight", weight, (None, None), "[V, H]")
    schema.expect_dtype("weight", weight, schema.FLOATS)
    schema.expect_rows("weight", weight)
    schema.expect_device("weight", weight, ids.device)
    schema.expect_range("vocab_start", vocab_start, 0, 2**31 - 1, "it is the id of the shard's first row")


def check_output(rows: Tensor, *, ids: Tensor, weight: Tensor) -> None:
    """Raise what the host can know about the tensor that ``embedding_out`` fills."""
    schema.expect_shape("rows", rows, (ids.shape[0], weight.shape[1]), "[T, H]")
    schema.expect_dtype("rows", rows, (weight.dtype,))
    schema.expect_contiguous("rows", rows)
    schema.expect_device("rows", rows, ids.device)
