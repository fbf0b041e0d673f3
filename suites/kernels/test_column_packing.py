"""Packed weights hold each number once, in the place where the kernels read it, and packing takes little memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimax_m2.kernels.cpu.column_packing import COLUMNS, blocks, every_row, rows_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def weights(dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers that differ from their neighbours, exact in each dtype."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 13 - 6).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, inputs", [(64, 6), (65, 7), (128, 1)])
def test_unpacking_gives_every_number_back(dtype: torch.dtype, rows: int, inputs: int) -> None:
    weight, order = weights(dtype, 3, rows, inputs), every_row(rows)
    laid = blocks(weight, order)
    assert laid.is_contiguous()
    assert torch.equal(rows_of(laid, order, inputs=inputs).float(), weight.float())


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_column_s_inputs_lie_a_strip_apart_or_in_pairs(dtype: torch.dtype) -> None:
    weight = weights(dtype, 2, 2 * COLUMNS, 4)
    laid = blocks(weight, every_row(2 * COLUMNS))
    found = laid[1, 1, 1, 5, 0] if dtype == torch.bfloat16 else laid[1, 1, 2, 5]
    assert float(found) == float(weight[1, COLUMNS + 5, 2])


class Made(TorchDispatchMode):
    """Sizes of the tensors that are made, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = dict[int, int]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.storages[made.untyped_storage().data_ptr()] = made.untyped_storage().nbytes()
        return made


def test_an_expert_s_rows_are_chosen_while_no_other_s_are() -> None:
    weight = weights(torch.bfloat16, 64, 128, 32)
    with Made() as seen:
        laid = blocks(weight, every_row(128))
    own = {weight.untyped_storage().data_ptr(), laid.untyped_storage().data_ptr()}
    assert max(size for place, size in seen.storages.items() if place not in own) <= weight[0].nbytes
