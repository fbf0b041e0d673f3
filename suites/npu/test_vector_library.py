"""Vector instructions do what their names say: halves to even, truths by the bit, nothing kept in scratch."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.npu.native_call import BUFFER, buffer, library
from minimax_m2.harness.npu.planned_run import vector_library
from minimax_m2.harness.npu.toolchain import compiler, reason_to_skip

ABSENCE = reason_to_skip("N3b")
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")]


class Vector(ctypes.Structure):
    """A view of one dimension, as MLIR's C interface has it."""

    _fields_ = (("words", ctypes.c_void_p * 2), ("offset", ctypes.c_int64), ("size", ctypes.c_int64),
                ("stride", ctypes.c_int64))  # fmt: skip


def of(x: Tensor, size: int | None = None) -> Any:
    """A vector in a tensor's memory; of truths, more than it has bytes."""
    words = (ctypes.c_void_p * 2)(x.data_ptr(), x.data_ptr())
    return ctypes.byref(Vector(words, 0, x.numel() if size is None else size, x.stride(0)))


def done(name: str, *given: Any) -> None:
    getattr(ctypes.CDLL(str(vector_library())), f"_mlir_ciface_{name}_{len(given)}")(*given)


def number(x: float) -> ctypes.c_float:
    return ctypes.c_float(x)


@pytest.mark.parametrize(
    "mode, expected",
    [(0, [2, 4, -2, 1, 0]), (1, [3, 4, -3, 1, 0]), (2, [2, 3, -3, 1, 0]), (3, [3, 4, -2, 1, 0]), (4, [2, 3, -2, 1, 0])],
    ids=["nearest", "away", "floor", "ceil", "cut"],
)
def test_a_conversion_rounds_as_its_mode_says_and_makes_zero_of_nan(mode: int, expected: list[int]) -> None:
    x, y = torch.tensor([2.5, 3.5, -2.5, 1.0, torch.nan]), torch.zeros(5, dtype=torch.int32)
    done("vcast_float_to_int32_t_1d_with_mode", of(x), of(y), mode)
    assert y.tolist() == expected


def test_float32_becomes_bfloat16_as_torch_has_it() -> None:
    x = torch.cat([torch.linspace(-3, 3, 4001), torch.tensor([torch.nan, torch.inf, 3.4e38, 1e-45])])
    y = torch.zeros(len(x), dtype=torch.bfloat16)
    done("vcast_float_to_bfloat16_t_1d_with_mode", of(x), of(y), 0)
    assert torch.equal(y.nan_to_num(7.0), x.bfloat16().nan_to_num(7.0))


def test_truths_lie_eight_to_a_byte_and_choose() -> None:
    a, b = torch.arange(12.0), torch.full((12,), 5.0)
    truths, chosen, scratch = torch.zeros(2, dtype=torch.uint8), torch.zeros(12), torch.zeros(8)
    done("vcmp_gt_1d_float", of(a), of(b), of(truths, 12))
    assert truths.tolist() == [0b11000000, 0b1111]
    done("vsel_vv_1d_bool_float", of(truths, 12), of(a), of(b), of(chosen), of(scratch))
    assert chosen.tolist() == [5.0] * 6 + [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert scratch.isnan().all()


def test_a_sum_is_of_all_and_spoils_its_scratch() -> None:
    x, total, scratch = torch.arange(1.0, 38.0), torch.zeros(1), torch.zeros(64)
    done("enablevc_reduce_sum_r_float", of(x), of(total), of(scratch), number(0.0))
    assert total.item() == 37 * 38 / 2
    assert scratch.isnan().all()


FILLED = """
module {
  func.func private @broadcast_scalar_bfloat16_t_to_1d_2(bf16, memref<?xbf16, strided<[?], offset: ?>>)
    attributes {llvm.emit_c_interface}
  func.func @filled(%to: memref<?xbf16>) {
    %x = arith.constant 1.5 : bf16
    %cast = memref.cast %to : memref<?xbf16> to memref<?xbf16, strided<[?], offset: ?>>
    call @broadcast_scalar_bfloat16_t_to_1d_2(%x, %cast) : (bf16, memref<?xbf16, strided<[?], offset: ?>>) -> ()
    return
  }
}
"""


def test_a_bfloat16_arrives_as_a_compiled_program_hands_it_over() -> None:
    x = torch.zeros(5, dtype=torch.bfloat16)
    with compiler() as by:
        filled = ctypes.CDLL(str(library(by.assemble(FILLED, "filled"), vector_library()))).filled
    filled.argtypes = BUFFER
    filled(*buffer(x))
    assert x.tolist() == [1.5] * 5
