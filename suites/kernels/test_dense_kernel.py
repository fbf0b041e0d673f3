"""What is special to the CPU kernels of products and attention; the harness judges their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.attention import attention
from minimax_m2.kernels.cpu.fp8_linear import PackedFp8Linear, fp8_linear, pack_fp8_linear
from minimax_m2.kernels.cpu.linear import linear
from minimax_m2.kernels.cpu.lm_head import lm_head
from minimax_m2.kernels.cpu.router import router
from minimax_m2.kernels.cpu.router_gemm import router_gemm
from minimax_m2.kernels.cpu.routing import routing

OPS = torch.ops.minimax_m2
BITS = Bits(Case({"op": "dense", "seed": 1}))
E4M3 = torch.float8_e4m3fn


def values(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (BITS.bell(name, shape) * 0.3).to(dtype)


def packed(N: int, H: int) -> PackedFp8Linear:
    scale = values("scale", -(-N // 128), -(-H // 128)).abs() + 0.1
    return pack_fp8_linear((values("codes", N, H) * 64).to(E4M3), scale)


def paged(B: int = 2, S: int = 70, n: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of attention: B sequences of S keys and n queries, 6 heads over 2, pages of 16."""
    pages = -(-S // 16)
    return {
        "q": values("q", B * n, 6, 32, dtype=dtype),
        "k_cache": values("k", B * pages, 16, 2, 32, dtype=dtype),
        "v_cache": values("v", B * pages, 16, 2, 32, dtype=dtype),
        "block_table": torch.arange(B * pages, dtype=torch.int32).view(B, pages),
        "seq_lens": torch.full((B,), S, dtype=torch.int32),
        "query_start": torch.arange(B + 1, dtype=torch.int32) * n,
        "scale": 0.2,
        "max_query_len": n,
        "max_seq_len": S,
    }


WEIGHT, PACKED = values("w", 40, 96), packed(40, 96)
WEIGHT_BF16, WEIGHT_FP16 = WEIGHT.bfloat16(), WEIGHT.half()

# Every op as a function of rows of x, for the tests that hold for all of them.
BY_ROW: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor]]] = {
    "router_gemm": (torch.bfloat16, lambda x: router_gemm(x, WEIGHT)),
    "linear": (torch.bfloat16, lambda x: linear(x, WEIGHT_BF16)),
    "linear-float32": (torch.float32, lambda x: linear(x, WEIGHT)),
    "lm_head": (torch.float16, lambda x: lm_head(x, WEIGHT_FP16, vocab_size=37)),
    "fp8_linear": (torch.bfloat16, lambda x: fp8_linear(x, PACKED)),
    "fp8_linear-float32": (torch.float32, lambda x: fp8_linear(x, PACKED)),
    "router": (torch.bfloat16, lambda x: router(x, WEIGHT, None, top_k=5)[0]),
}


def test_opcheck_accepts_every_op() -> None:
    x, w, p = values("x", 3, 32), values("w", 8, 32), packed(8, 32)
    a = paged()
    paging = (a["q"], a["k_cache"], a["v_cache"], a["block_table"], a["seq_lens"], a["query_start"])
    rows, ids = torch.tensor([2, 0]), torch.zeros(3, 2, dtype=torch.int32)
    check = torch.library.opcheck
    check(OPS.router_gemm.default, (x, w, None, torch.empty(3, 8)))
    check(OPS.linear.default, (x, w, torch.empty(3, 8)))
    check(OPS.lm_head.default, (x, w, rows, torch.empty(2, 7)))
    # opcheck's schema test perturbs every input, and torch has no arithmetic on float8.
    without_schema = ("test_autograd_registration", "test_faketensor")
    check(OPS.fp8_linear.default, (x, *p, None, torch.empty(3, 8)), test_utils=without_schema)
    check(OPS.router.default, (x, w, None, 2, True, False, 1.0, 0.0, None, torch.empty(3, 2), ids))
    check(OPS.attention.default, (*paging, 0.2, 3, 70, None, None, torch.empty(a["q"].shape)))


@pytest.mark.parametrize("name", BY_ROW)
def test_compile_traces_an_op_as_one_graph(name: str) -> None:
    dtype, op = BY_ROW[name]
    x = values("x", 5, 96, dtype=dtype)
    compiled = torch.compile(lambda x: op(x * 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), op(x * 2))


def test_compile_traces_attention_as_one_graph() -> None:
    others = paged()
    q = others.pop("q")
    compiled = torch.compile(lambda q: attention(q, **others), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q), attention(q, **others))


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("op", BY_ROW)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(op: str, name: str) -> None:
    dtype, function = BY_ROW[op]
    x = values("x", 131, 96, dtype=dtype)
    with isa.forced(name):
        together = function(x)
        alone = torch.cat([function(x[t : t + 1]) for t in (0, 5, 119, 120, 130)])
        pair = function(x[119:121])
    assert torch.equal(together[[0, 5, 119, 120, 130]], alone)
    assert torch.equal(together[119:121], pair)


@pytest.mark.parametrize("op", [*BY_ROW, "attention"])
def test_the_number_of_threads_changes_no_bit(op: str) -> None:
    dtype, function = BY_ROW.get(op, (torch.float32, lambda x: attention(**paged(B=3))))
    x = values("x", 131, 96, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = function(x)
    torch.set_num_threads(3)
    shared = function(x)
    torch.set_num_threads(before)
    assert torch.equal(alone, shared)


@pytest.mark.parametrize("name", isa.available())
def test_scales_of_halves_and_of_columns_give_the_same_bits(name: str) -> None:
    weight, scale, x = values("codes", 200, 300).to(E4M3), values("scale", 2, 3), values("x", 9, 300).bfloat16()
    halves = pack_fp8_linear(weight, scale)
    columns = pack_fp8_linear(weight, scale.repeat_interleave(128, 0)[:200], block=(1, 128))
    assert (halves.scale.shape[-1], columns.scale.shape[-1]) == (2, 64)
    with isa.forced(name):
        assert torch.equal(fp8_linear(x, halves), fp8_linear(x, columns))


def test_router_has_the_bits_of_its_parts() -> None:
    x, weight, bias = values("x", 9, 96, dtype=torch.bfloat16), values("w", 40, 96), values("b", 40)
    expected = routing(router_gemm(x, weight), bias, top_k=5)
    assert all(torch.equal(a, b) for a, b in zip(router(x, weight, bias, top_k=5), expected, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w: router_gemm(x, w.bfloat16()), TypeError, "weight has dtype bfloat16, expected float32"),
        (lambda x, w: router_gemm(x[:, :8], w), ValueError, r"weight has shape \[8, 32\], expected \[E, H\]"),
        (lambda x, w: linear(x, w.bfloat16()), TypeError, "weight has dtype bfloat16, expected float32"),
        (lambda x, w: linear(x, w, out_dtype=torch.int8), TypeError, "out_dtype=torch.int8, expected"),
        (lambda x, w: linear(x.mT.contiguous().mT, w), ValueError, "x has stride 3 in its last dimension"),
        (lambda x, w: lm_head(x, w, vocab_size=9), ValueError, r"vocab_size=9 is outside 1..8.*gather all shards"),
        (lambda x, w: lm_head(x, w, rows=torch.tensor([0, 3]), vocab_size=8), ValueError, r"rows\[1\] is outside 0..2"),
        (lambda x, w: router(x, w, None, top_k=9), ValueError, "top_k=9 is outside 1..8"),
        (lambda x, w: router(x * torch.nan, w, None, top_k=2), ValueError, "x row 0 has an expert .* NaN"),
        (lambda x, w: fp8_linear(x.to(E4M3), packed(8, 32)), ValueError, "without x_scale; pass x_scale"),
        (lambda x, w: pack_fp8_linear(w.to(E4M3), torch.ones(2, 1)), ValueError, r"scale has shape \[2, 1\]"),
        (lambda x, w: pack_fp8_linear(w.to(E4M3), torch.ones(1, 2), block=(128, 17)), ValueError, "has odd columns"),
        (
            lambda x, w: fp8_linear(x, packed(8, 32)._replace(scale=torch.ones(1, 2, 64))),
            ValueError, r"packed.scale has shape \[1, 2, 64\], expected \[ceil\(N/64\), ceil\(H/columns\), 64 or 2\]",
        ),
        (
            lambda x, w: fp8_linear(x.to(E4M3), packed(8, 32), x_scale=torch.ones(3, 2)),
            ValueError, r"x_scale has shape \[3, 2\], expected \[T, ceil\(H/columns\)\] = \[3, 1\]",
        ),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_product_is_named(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(values("x", 3, 32), values("w", 8, 32))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_seq_len": 69}, ValueError, "seq_lens=70 in sequence 0 is outside 0..max_seq_len=69"),
        ({"max_query_len": 2}, ValueError, "3 queries in sequence 0 exceed max_query_len=2"),
        ({"query_start": torch.tensor([0, 3, 2])}, ValueError, "query_start falls in sequence 1"),
        ({"query_start": torch.tensor([0, 3, 7])}, ValueError, "runs from 0 to 7, expected within 0..6"),
        ({"block_table": torch.full((2, 5), 10)}, ValueError, "block_table row 0 names a page outside 0..9"),
        ({"block_table": torch.zeros(2, 4, dtype=torch.int32)}, ValueError, "exceeds the 64 slots"),
        ({"k_scale": torch.ones(2)}, ValueError, "k_scale has 2 elements, expected one"),
        ({"q": torch.zeros(6, 5, 32)}, ValueError, "query heads that the key/value heads divide"),
        ({"q": torch.zeros(6, 6, 32).bfloat16()}, TypeError, "k_cache has dtype float32, expected bfloat16 or float8"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_attention_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention(**paged() | changes)
