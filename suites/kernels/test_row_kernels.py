"""What is special to the CPU kernels of norms, SwiGLU and quantisers; their numbers are judged by the harness."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.add_rms_norm import add_rms_norm, add_rms_norm_out
from minimax_m2.kernels.cpu.block_dequant import block_dequant
from minimax_m2.kernels.cpu.block_quant import block_quant
from minimax_m2.kernels.cpu.rms_norm import rms_norm
from minimax_m2.kernels.cpu.swiglu_quant import swiglu_quant


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Distinct numbers of both signs."""
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * 37 % 251 - 125) / 64).reshape(shape).to(dtype)


class Call(NamedTuple):
    """Positional arguments and keywords of one call of an op."""

    arguments: tuple[Tensor, ...]
    keywords: dict[str, Any]


X, RESIDUAL, WEIGHT = drawn(65, 200), drawn(65, 200).flip(0), drawn(200)
Q, SCALE = drawn(130, 40).to(torch.float8_e4m3fn), torch.full((2, 3), 0.125)
CALLS = {
    "rms_norm": Call((X, WEIGHT), {"eps": 1e-6}),
    "add_rms_norm": Call((X, RESIDUAL, WEIGHT), {"eps": 1e-6}),
    "swiglu": Call((X,), {}),
    "block_quant": Call((X,), {"group": 64}),
    "block_dequant": Call((Q, SCALE), {"block": (128, 16), "dtype": torch.bfloat16}),
    "add_rms_norm_quant": Call((X, RESIDUAL, WEIGHT), {"eps": 1e-6, "group": 64}),
    "swiglu_quant": Call((X,), {"group": 64}),
}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    op: getattr(importlib.import_module(f"minimax_m2.kernels.cpu.{op}"), op) for op in CALLS
}


def results(op: str, *, rows: int | None = None) -> tuple[Tensor, ...]:
    """The op's outputs; ``rows`` keeps only the first tokens."""
    arguments = tuple(a if rows is None or a.dim() == 1 else a[:rows] for a in CALLS[op].arguments)
    returned = FUNCTIONS[op](*arguments, **CALLS[op].keywords)
    return returned if isinstance(returned, tuple) else (returned,)


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a.double(), e.double()) for a, e in zip(actual, expected, strict=True))


def test_opcheck_accepts_the_seven_ops() -> None:
    ops, (y, z) = torch.ops.minimax_m2, (torch.empty_like(X), torch.empty_like(X))
    q, scale = torch.empty(65, 200, dtype=torch.float8_e4m3fn), torch.empty(65, 4)
    half, codes = torch.empty(65, 100, dtype=X.dtype), torch.empty(65, 100, dtype=torch.int8)
    torch.library.opcheck(ops.rms_norm.default, (X, WEIGHT, 1e-6, y))
    torch.library.opcheck(ops.add_rms_norm.default, (X, RESIDUAL, WEIGHT, 1e-6, y, z))
    torch.library.opcheck(ops.swiglu.default, (X, half))
    torch.library.opcheck(ops.swiglu_quant.default, (X, 64, codes, torch.empty(65, 2)))
    # opcheck's other tests multiply and compare tensors, for which torch has no float8.
    fake = "test_faketensor"
    torch.library.opcheck(ops.block_quant.default, (X, 64, False, q, scale), test_utils=fake)
    torch.library.opcheck(ops.add_rms_norm_quant.default, (X, RESIDUAL, WEIGHT, 1e-6, 64, q, scale, y), test_utils=fake)
    torch.library.opcheck(ops.block_dequant.default, (Q, SCALE, 128, 16, torch.empty(130, 40)), test_utils=fake)


@pytest.mark.parametrize("op", CALLS)
def test_compile_traces_an_op_as_one_graph(op: str) -> None:
    compiled = torch.compile(FUNCTIONS[op], fullgraph=True, backend="aot_eager")
    actual = compiled(*CALLS[op].arguments, **CALLS[op].keywords)
    assert same(actual if isinstance(actual, tuple) else (actual,), results(op))


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("op", CALLS)
def test_the_number_of_threads_changes_no_bit(op: str, name: str) -> None:
    before = torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = results(op)
        torch.set_num_threads(3)
        shared = results(op)
        torch.set_num_threads(before)
    assert same(shared, alone)


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("op", [op for op in CALLS if op != "block_dequant"])
def test_a_token_does_not_see_its_batch(op: str, name: str) -> None:
    with isa.forced(name):
        alone, whole = results(op, rows=1), results(op)
    assert same(alone, tuple(out[:1] for out in whole))


@pytest.mark.parametrize("name", isa.available())
def test_outputs_may_be_the_inputs(name: str) -> None:
    x, residual = X.clone(), RESIDUAL.clone()
    with isa.forced(name):
        expected = add_rms_norm(X, RESIDUAL, WEIGHT, eps=1e-6)
        add_rms_norm_out(x, residual, WEIGHT, x, residual, eps=1e-6)
    assert same((x, residual), expected)


@pytest.mark.parametrize("name", isa.available())
def test_a_nan_spoils_its_own_group_only(name: str) -> None:
    x = drawn(2, 96, dtype=torch.float32)
    clean_q, clean_scale = block_quant(x, group=32)
    x[1, 40] = torch.nan
    with isa.forced(name):
        q, scale = block_quant(x, group=32)
    assert scale.isnan().tolist() == [[False, False, False], [False, True, False]]
    assert q[1, 32:64].float().isnan().all()
    assert same((q[0], q[1, :32], q[1, 64:], scale[0]), (clean_q[0], clean_q[1, :32], clean_q[1, 64:], clean_scale[0]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rms_norm(X, WEIGHT.float(), eps=1e-6), TypeError, "weight has dtype float32, expected bfloat16"),
        (lambda: rms_norm(X.t(), WEIGHT[:65], eps=1e-6), ValueError, "x has stride 200 in its last dimension"),
        (lambda: add_rms_norm(X, RESIDUAL[:3], WEIGHT, eps=1e-6), ValueError, r"residual has shape \[3, 200\]"),
        (lambda: swiglu_quant(X[:, :7]), ValueError, "gate_up has width 7, which is odd"),
        (lambda: swiglu_quant(X, quant="int4"), ValueError, "quant='int4' is unknown; use one of e4m3, int8"),
        (lambda: swiglu_quant(drawn(1, 40000), group=20000), ValueError, "group=20000 is outside 1..16384"),
        (lambda: block_quant(X, group=0), ValueError, "group=0 is outside 1"),
        (lambda: block_quant(X, scale_format="e5m2"), ValueError, "scale_format='e5m2' is unknown"),
        (lambda: block_dequant(Q, SCALE, dtype=torch.bfloat16), ValueError, r"scale has shape \[2, 3\]"),
        (lambda: block_dequant(Q, SCALE, block=(128, 16), dtype=torch.int8), TypeError, "dtype=torch.int8, expected"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
