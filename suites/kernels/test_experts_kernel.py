"""What is special to the CPU experts kernel; its numbers are judged by the harness (suites/test_experts.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.ops.experts import WIDE_CASES
from minimax_m2.harness.providers.ours import ours
from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.experts import PackedExperts, experts, experts_out, pack_experts, unpack_experts

T, E, K, H, I = 5, 3, 2, 70, 40


def dyadic(*shape: int) -> Tensor:
    """Different small dyadic numbers of both signs."""
    count = int(torch.Size(shape).numel())
    return ((torch.arange(count) * 37 + 11) % 61 - 30).reshape(shape) / 64


WEIGHTS: dict[str, Any] = {"w13": dyadic(E, 2 * I, H), "w2": dyadic(E, H, I)}
INT8: dict[str, Any] = {name: (w * 128).to(torch.int8) for name, w in WEIGHTS.items()} | {
    "w13_scale": torch.ones(E, 2 * I, 1), "w2_scale": torch.ones(E, H, 1)
}  # fmt: skip


def arguments(dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    packed = pack_experts(dyadic(E, 2 * I, H).to(dtype), dyadic(E, H, I).to(dtype))
    ids = torch.tensor([[0, 1], [1, 2], [2, -1], [-1, -1], [0, 2]], dtype=torch.int32)
    return {"x": dyadic(T, H).to(dtype), "packed": packed, "weights": dyadic(T, K).abs(), "ids": ids}


def test_opcheck_accepts_experts() -> None:
    given = arguments()
    operands = (given["x"], list(given["packed"]), given["weights"], given["ids"], None, None, torch.empty(T, H))
    torch.library.opcheck(torch.ops.minimax_m2.experts.default, operands)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_experts_as_one_graph(dynamic: bool) -> None:
    given = arguments()
    x = given.pop("x")
    compiled = torch.compile(lambda y: experts(y * 2, **given), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(x), experts(x * 2, **given))


def packed_of(quant: str, num_experts: int, H: int, I: int) -> PackedExperts:
    """Experts as they are released, int8 by channel, or plain."""
    w13, w2 = dyadic(num_experts, 2 * I, H), dyadic(num_experts, H, I)
    if quant == "int8":
        s13, s2 = (dyadic(*w.shape[:2], 1).abs() + 0.5 for w in (w13, w2))
        return pack_experts(*((w * 128).to(torch.int8) for w in (w13, w2)), w13_scale=s13, w2_scale=s2)
    if quant != "e4m3":
        return pack_experts(w13.to(getattr(torch, quant)), w2.to(getattr(torch, quant)))
    s13, s2 = (dyadic(num_experts, -(-w.shape[1] // 128), -(-w.shape[2] // 128)).abs() + 0.5 for w in (w13, w2))
    return pack_experts(*(w.to(torch.float8_e4m3fn) for w in (w13, w2)), w13_scale=s13, w2_scale=s2)


@pytest.mark.parametrize("H, I", [(70, 40), (256, 192), (129, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
def test_packing_loses_no_bit(dtype: torch.dtype, H: int, I: int) -> None:
    block = (32, 64)
    w13, w2 = dyadic(E, 2 * I, H).to(dtype), dyadic(E, H, I).to(dtype)
    scales = [dyadic(E, -(-w.shape[1] // 32), -(-w.shape[2] // 64)).abs() + 0.5 for w in (w13, w2)]
    scaled = dict(zip(("w13_scale", "w2_scale"), scales, strict=True)) if dtype.itemsize == 1 else {}
    found = unpack_experts(pack_experts(w13, w2, **scaled, block=block), block=block)
    expected = [w13, w2, *scaled.values()]
    assert [torch.equal(raw(a), raw(b)) for a, b in zip(found, expected, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("H, I", [(70, 40), (129, 33), (1, 1)])
def test_packing_int8_loses_no_bit(H: int, I: int) -> None:
    w13, w2 = ((dyadic(E, *shape) * 128).to(torch.int8) for shape in ((2 * I, H), (H, I)))
    scales = [dyadic(E, w.shape[1], 1).abs() + 0.5 for w in (w13, w2)]
    found = unpack_experts(pack_experts(w13, w2, w13_scale=scales[0], w2_scale=scales[1]))
    assert [torch.equal(a, b) for a, b in zip(found, (w13, w2, *scales), strict=True)] == [True] * 4


def test_a_row_laid_elsewhere_is_another_weight() -> None:
    packed = pack_experts(WEIGHTS["w13"], WEIGHTS["w2"])
    swapped = packed._replace(w2=packed.w2.flip(-1))
    assert not torch.equal(unpack_experts(swapped)[1], WEIGHTS["w2"])


def raw(x: Tensor) -> Tensor:
    """Bits, which torch compares for every dtype."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("quant", ["bfloat16", "float16", "float32", "e4m3", "int8"])
def test_the_number_of_threads_changes_no_bit(name: str, quant: str) -> None:
    packed = packed_of(quant, 4, 192, 128)
    x = dyadic(60, 192).to(torch.bfloat16 if quant in ("e4m3", "int8") else getattr(torch, quant))
    ids, weights, before = torch.arange(120).reshape(60, 2) % 4, dyadic(60, 2).abs(), torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = experts(x, packed, weights, ids)
        torch.set_num_threads(3)
        shared = experts(x, packed, weights, ids)
        torch.set_num_threads(before)
    assert torch.equal(alone, shared)


# 200 rows are more than a chunk of 96; 640 inputs are a slab of 512 and a part, five groups of 128.
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quant", ["bfloat16", "e4m3", "float32", "int8"])
@pytest.mark.parametrize("name", isa.available())
def test_a_token_does_not_feel_its_batch(name: str, quant: str, threads: int) -> None:
    packed = packed_of(quant, 2, 640, 144)
    x = dyadic(200, 640).to(torch.float32 if quant == "float32" else torch.bfloat16)
    ids, weights, before = torch.arange(400).reshape(200, 2) % 2, dyadic(200, 2), torch.get_num_threads()
    shuffled = (torch.arange(200) * 77 + 3) % 200
    torch.set_num_threads(threads)
    with isa.forced(name):
        together = experts(x, packed, weights, ids)
        moved = experts(x[shuffled], packed, weights[shuffled], ids[shuffled])
        # Alone, and in batches around one and two strips of six.
        sizes = (1, 2, 5, 6, 7, 11, 12, 13, 24, 25, 94)
        apart = torch.cat([experts(x[r], packed, weights[r], ids[r]) for r in batches(sizes)])
    torch.set_num_threads(before)
    assert torch.equal(together, apart)
    assert torch.equal(together[shuffled], moved)


def batches(sizes: tuple[int, ...]) -> list[slice]:
    """Neighbouring slices of these sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("fields", WIDE_CASES, ids=lambda fields: f"seed{fields['seed']}")
def test_one_token_at_the_width_of_the_model(fields: dict[str, int | str]) -> None:
    verdict = judge(find_op("experts").case(**fields), ours(), isa.current())
    assert verdict.passed, verdict.explain()


@pytest.mark.parametrize("name", isa.available())
def test_weights_packed_under_one_instruction_set_serve_all(name: str) -> None:
    given = arguments()
    with isa.forced("portable"):
        given["packed"] = pack_experts(dyadic(E, 2 * I, H).bfloat16(), dyadic(E, H, I).bfloat16())
    with isa.forced(name):
        assert torch.equal(experts(**given), experts(**arguments()))


@pytest.mark.parametrize("name", isa.available())
def test_scales_of_halves_and_of_columns_give_the_same_bits(name: str) -> None:
    H, I = 256, 160  # up begins within a row of scales, at one of its halves
    w13, w2 = (dyadic(2, *shape).to(torch.float8_e4m3fn) for shape in ((2 * I, H), (H, I)))
    s13, s2 = dyadic(2, 3, 2).abs() + 0.5, dyadic(2, 2, 2).abs() + 0.5
    halves = pack_experts(w13, w2, w13_scale=s13, w2_scale=s2)
    each13, each2 = s13.repeat_interleave(128, 1)[:, : 2 * I], s2.repeat_interleave(128, 1)
    columns = pack_experts(w13, w2, w13_scale=each13, w2_scale=each2, block=(1, 128))
    assert [(p.w13_scale.shape[-1], p.w2_scale.shape[-1]) for p in (halves, columns)] == [(2, 2), (64, 64)]
    x, weights, ids = dyadic(9, H).bfloat16(), dyadic(9, 2).abs(), torch.arange(18).reshape(9, 2) % 2
    with isa.forced(name):
        assert torch.equal(experts(x, halves, weights, ids), experts(x, columns, weights, ids))


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)  # operands: pairs, float32
def test_every_code_of_e4m3_is_read_exactly(name: str, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    ones = torch.ones(1, 4, 256).to(torch.float8_e4m3fn)
    w2 = torch.stack([codes, codes.view(torch.uint8).flip(0).view(torch.float8_e4m3fn)], -1)[None]
    packed = pack_experts(ones, w2, w13_scale=torch.ones(1, 1, 2), w2_scale=torch.ones(1, 2, 1))
    x, weights, ids = torch.eye(1, 256, dtype=dtype), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
    act = torch.nn.functional.silu(torch.ones(())).to(dtype).double()
    with isa.forced(name):
        y = experts(x, packed, weights, ids, out_dtype=torch.float32)
    expected = (act * w2[0].double()).sum(-1).float()[None]
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_no_token_needs_no_launch() -> None:
    x, ids = torch.empty(0, H, dtype=torch.bfloat16), torch.empty(0, K, dtype=torch.int64)
    y = experts(x, arguments()["packed"], torch.empty(0, K), ids, out_dtype=torch.float32)
    assert y.shape == (0, H)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize(
    ("ids", "expert_map", "message"),
    [
        ([[0, 3]], None, r"ids at \[0, 1\] is outside -1..2, the packed experts"),
        ([[-2, 0]], None, r"ids at \[0, 0\] is outside -1..2"),
        ([[2**33, 0]], None, r"ids at \[0, 0\] is outside -1..2"),
        ([[0, 4]], [0, 1, 2, -1], r"ids at \[0, 1\] is outside -1..3 or expert_map sends it outside -1..2"),
        ([[0, 1]], [0, 3], r"ids at \[0, 1\] is outside -1..1 or expert_map sends it outside -1..2"),
    ],
)
def test_ids_out_of_range_raise(name: str, ids: list[list[int]], expert_map: list[int] | None, message: str) -> None:
    one = (dyadic(1, H).bfloat16(), arguments()["packed"], torch.ones(1, 2), torch.tensor(ids))
    mapped = None if expert_map is None else torch.tensor(expert_map, dtype=torch.int32)
    with isa.forced(name), pytest.raises(ValueError, match=message):
        experts(*one, expert_map=mapped)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": dyadic(T, H)}, TypeError, "w13 has dtype bfloat16, expected float32"),
        ({"x": dyadic(T, H + 1).bfloat16()}, ValueError, r"x has shape \[5, 71\], expected \[T, H\] = \[any, 70\]"),
        ({"x": dyadic(H, T).bfloat16().t()}, ValueError, "x has stride 5 in its last dimension"),
        ({"ids": torch.zeros(4, 2, dtype=torch.int32)}, ValueError, r"ids has shape \[4, 2\], expected \[T, K\]"),
        ({"ids": torch.zeros(T, 2, dtype=torch.int16)}, TypeError, "ids has dtype int16, expected int32 or int64"),
        ({"weights": None, "ids": torch.zeros(T, 2).long()}, TypeError, "words of pack_routing"),
        ({"weights": torch.ones(T, 3)}, ValueError, r"weights has shape \[5, 3\], expected \[T, K\] = \[5, 2\]"),
        ({"expert_map": torch.zeros(9).long()}, TypeError, "expert_map has dtype int64, expected int32"),
        (
            {"packed": packed_of("int8", E, H, I), "x_scale": torch.ones(T, 1)},
            ValueError,
            "x_scale is given; beside int8",
        ),
        (
            {"x_scale": torch.ones(T, 1)},
            ValueError,
            "x_scale is given beside w13 of torch.bfloat16 without scales; pass x as torch.bfloat16",
        ),
        (
            {"packed": packed_of("e4m3", E, H, I), "x_scale": torch.ones(T, 1)},
            TypeError,
            r"x \(with x_scale\) has dtype bfloat16, expected float8_e4m3fn",
        ),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        experts(**arguments() | change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w13": dyadic(E, 2 * I, H + 1)}, ValueError, r"w13 has shape \[3, 80, 71\], expected \[E, 2\*I, H\]"),
        ({"w2": dyadic(E, H, I).half()}, TypeError, "w2 has dtype float16, expected float32"),
        ({"w13_scale": torch.ones(E, 1, 1)}, ValueError, "one of w13_scale and w2_scale is None"),
        ({"block": (128, 33)}, ValueError, r"block=\(128, 33\) has odd columns"),
        ({"w13_scale": torch.ones(E, 1, 1), "w2_scale": torch.ones(E, 1, 1)}, TypeError, "w13 has dtype float32"),
        (INT8 | {"block": (128, 128)}, ValueError, r"block=\(128, 128\) is given; int8 weights have one scale a row"),
        (INT8 | {"w2_scale": torch.ones(E, 1, 1)}, ValueError, r"w2_scale has shape \[3, 1, 1\]"),
        (INT8 | {"w2": dyadic(E, H, I)}, TypeError, "w2 has dtype float32, expected int8"),
    ],
)
def test_packing_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack_experts(**{**WEIGHTS, **change})


def test_packed_weights_are_a_named_tuple_of_tensors() -> None:
    packed = arguments()["packed"]
    assert isinstance(packed, PackedExperts)
    assert all(isinstance(part, Tensor) for part in packed)


def test_out_fills_the_given_tensor() -> None:
    given, out = arguments(), torch.full((T, H), torch.nan)
    operands = (given["x"], given["packed"], given["weights"], given["ids"])
    experts_out(*operands, out, out_dtype=torch.float32)
    assert torch.equal(out, experts(*operands, out_dtype=torch.float32))
    assert (out[3] == 0).all()
