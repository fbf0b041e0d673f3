"""What is special to the CPU kernel that splits a gated delta net's projections."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.qkvzba_split import qkvzba_split, qkvzba_split_out, qkvzba_views

SIZES: dict[str, Any] = {"num_k_heads": 3, "num_v_heads": 6, "head_k_dim": 8, "head_v_dim": 5}
LAYOUTS = ("contiguous", "interleaved")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def given(T: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Distinct numbers, rows as far apart as those of a wider projection."""
    wide = torch.arange(T * 130).reshape(T, 130).to(dtype)
    return wide[:, :108], wide[:, 110:122]


def test_opcheck_accepts_both_layouts() -> None:
    outputs = torch.empty(3, 78), torch.empty(3, 6, 5), torch.empty(3, 6), torch.empty(3, 6)
    for interleaved in (False, True):
        torch.library.opcheck(
            torch.ops.minimax_m2.qkvzba_split.default, (*given(), *SIZES.values(), interleaved, *outputs)
        )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile_traces_a_split_as_one_graph(layout: str, dynamic: bool) -> None:
    compiled = torch.compile(qkvzba_split, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = qkvzba_split(*given(), **SIZES, layout=layout)
    assert all(map(torch.equal, compiled(*given(), **SIZES, layout=layout), expected))


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_threads_changes_no_bit(layout: str, name: str) -> None:
    before = torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = qkvzba_split(*given(2000), **SIZES, layout=layout)
        torch.set_num_threads(3)
        shared = qkvzba_split(*given(2000), **SIZES, layout=layout)
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, shared))


def test_views_hold_what_the_copy_holds_in_the_inputs_own_memory() -> None:
    qkvz, ba = given()
    views = qkvzba_views(qkvz, ba, **SIZES)
    assert all(map(torch.equal, views, qkvzba_split(qkvz, ba, **SIZES)))
    storages = [x.untyped_storage().data_ptr() for x in (qkvz, qkvz, ba, ba)]
    assert [x.untyped_storage().data_ptr() for x in views] == storages


def test_compile_traces_views_as_one_graph() -> None:
    compiled = torch.compile(qkvzba_views, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(*given(), **SIZES), qkvzba_split(*given(), **SIZES)))


def test_no_token_needs_no_launch() -> None:
    assert [tuple(x.shape) for x in qkvzba_split(*given(0), **SIZES)] == [(0, 78), (0, 6, 5), (0, 6), (0, 6)]


@pytest.mark.parametrize("dtypes", [pair for pair in product(FLOATS, FLOATS) if pair[0] != pair[1]], ids=str)
def test_projections_of_two_dtypes_are_refused(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    with pytest.raises(TypeError, match=rf"ba has dtype {str(dtypes[1])[6:]}, expected {str(dtypes[0])[6:]}"):
        qkvzba_split(given(dtype=dtypes[0])[0], given(dtype=dtypes[1])[1], **SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "paired"}, "layout='paired' is unknown; use one of contiguous, interleaved"),
        ({"num_k_heads": 4}, "num_k_heads=4, num_v_heads=6, .* key heads that divide the value heads"),
        ({"num_k_heads": 0}, "num_k_heads=0, num_v_heads=6, .* expected positive sizes"),
        ({"head_v_dim": 6}, r"qkvz has shape \[3, 108\], expected \[T, 2\*Hk\*Dk \+ 2\*Hv\*Dv\] = \[any, 120\]"),
        ({"ba": torch.zeros(3, 11)}, r"ba has shape \[3, 11\], expected \[T, 2\*Hv\] = \[3, 12\]"),
        ({"qkvz": torch.zeros(108, 3).t()}, "qkvz has stride 3 in its last dimension"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = dict(zip(("qkvz", "ba"), given(), strict=True)) | SIZES | change
    with pytest.raises(ValueError, match=message):
        qkvzba_split(**arguments)


def test_outputs_of_another_shape_are_refused() -> None:
    outputs = torch.empty(3, 78), torch.empty(3, 30), torch.empty(3, 6), torch.empty(3, 6)
    with pytest.raises(ValueError, match=r"z has shape \[3, 30\], expected \[T, Hv, Dv\] = \[3, 6, 5\]"):
        qkvzba_split_out(*given(), *outputs, **SIZES)
