"""What is special to the CPU kernels from qkv to the cache; their numbers are judged by the harness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import isa
from minimax_m2.kernels.cpu.embedding import embedding
from minimax_m2.kernels.cpu.kv_cache import kv_cache
from minimax_m2.kernels.cpu.qk_norm_rope import qk_norm_rope, qk_sum_squares
from minimax_m2.kernels.cpu.qk_norm_rope_cache import qk_norm_rope_cache
from minimax_m2.kernels.cpu.rope import rope

OPS = torch.ops.minimax_m2
SIZES: dict[str, Any] = {
    "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "rotary_dim": 4, "q_width": 16, "k_width": 8, "eps": 1e-6,
}  # fmt: skip


def ramp(*shape: int) -> Tensor:
    """Distinct dyadic numbers in every row."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37 % 101 - 50) / 32).reshape(shape)


def arguments(T: int = 3) -> dict[str, Any]:
    return {"qkv": ramp(T, 32), "stats": None, "q_weight": ramp(16), "k_weight": ramp(8), "cos_sin": ramp(5, 4),
            "positions": torch.arange(T) % 5}  # fmt: skip


def cached(T: int = 3) -> dict[str, Any]:
    return arguments(T) | {"k_cache": ramp(2, 4, 1, 8), "v_cache": ramp(2, 4, 1, 8), "slots": torch.arange(T) * 2 - 1}


def test_opcheck_accepts_the_six_ops() -> None:
    norm, cache, out = tuple(arguments().values()), tuple(cached().values()), torch.empty(3, 2, 8)
    sizes = tuple(SIZES.values())
    k, table = ramp(3, 1, 8), (ramp(5, 4), torch.arange(3))
    check = torch.library.opcheck
    check(OPS.qk_norm_rope.default, (*norm, *sizes, out, torch.empty(3, 1, 8), torch.empty(3, 1, 8)))
    check(OPS.qk_norm_rope_cache.default, (*cache, *sizes, out))
    check(OPS.qk_sum_squares.default, (norm[0], 2, 8, 1, torch.empty(3, 2)))
    check(OPS.rope.default, (ramp(3, 2, 8), k, *table, 4, out, torch.empty(3, 1, 8)))
    check(OPS.kv_cache.default, (k, k, *cache[6:], None, torch.tensor(2.0)))
    check(OPS.embedding.default, (torch.tensor([0, 9]), ramp(4, 6), 0, torch.empty(2, 6)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_norm_and_write_as_one_graph(dynamic: bool) -> None:
    def step(given: dict[str, Any]) -> Tensor:
        x = given | {"qkv": given["qkv"] * 2, "stats": qk_sum_squares(given["qkv"] * 2, num_heads=2, num_kv_heads=1,
                                                                      head_dim=8)}  # fmt: skip
        return qk_norm_rope_cache(**x, **SIZES) + 1

    ours, compiled = cached(), cached()
    expected = step(ours)
    actual = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")(compiled)
    assert torch.equal(actual, expected)
    assert torch.equal(compiled["k_cache"], ours["k_cache"])
    assert torch.equal(compiled["v_cache"], ours["v_cache"])


@pytest.mark.parametrize("name", isa.available())
def test_the_fusion_writes_what_its_parts_write(name: str) -> None:
    fused, parts = cached(), cached()
    with isa.forced(name):
        q = qk_norm_rope_cache(**fused, **SIZES)
        expected_q, k, v = qk_norm_rope(**arguments(), **SIZES)
        kv_cache(k, v, parts["k_cache"], parts["v_cache"], parts["slots"])
    assert torch.equal(q, expected_q)
    assert torch.equal(fused["k_cache"], parts["k_cache"])
    assert torch.equal(fused["v_cache"], parts["v_cache"])


@pytest.mark.parametrize("name", isa.available())
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    wide = arguments(2000)
    before = torch.get_num_threads()
    with isa.forced(name):
        torch.set_num_threads(1)
        alone = qk_norm_rope(**wide, **SIZES)
        torch.set_num_threads(3)
        shared = qk_norm_rope(**wide, **SIZES)
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_the_table_raises_and_writes_nothing(position: int, name: str) -> None:
    given = cached()
    given["positions"] = torch.tensor([0, position, 1])
    untouched = given["k_cache"].clone()
    with isa.forced(name), pytest.raises(ValueError, match=r"positions\[1\] is outside 0..4, the rows of cos_sin"):
        qk_norm_rope_cache(**given, **SIZES)
    assert torch.equal(given["k_cache"], untouched)


@pytest.mark.parametrize("name", isa.available())
def test_a_slot_past_the_cache_raises_and_writes_nothing(name: str) -> None:
    given = cached() | {"slots": torch.tensor([0, -1, 8])}
    untouched, k = given["k_cache"].clone(), ramp(3, 1, 8)
    message = r"slots\[2\]=8 is past the cache of 2 pages of 4; -1 marks"
    with isa.forced(name), pytest.raises(ValueError, match=message):
        qk_norm_rope_cache(**given, **SIZES)
    with isa.forced(name), pytest.raises(ValueError, match=message):
        kv_cache(k, k, given["k_cache"], given["v_cache"], given["slots"])
    assert torch.equal(given["k_cache"], untouched)


def test_no_token_needs_no_launch() -> None:
    q, k, v = qk_norm_rope(**arguments(0), **SIZES)
    assert q.shape == (0, 2, 8)
    assert k.shape == v.shape == (0, 1, 8)
    assert embedding(torch.empty(0, dtype=torch.int64), ramp(4, 6)).shape == (0, 6)
    assert qk_sum_squares(torch.empty(0, 32), num_heads=2, num_kv_heads=1, head_dim=8).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": ramp(3, 31)}, ValueError, r"\[3, 31\], expected \[T, \(Hq \+ 2\*Hk\)\*D\] = \[any, 32\]"),
        ({"qkv": ramp(32, 3).t()}, ValueError, "qkv has stride 3 in its last dimension"),
        ({"stats": ramp(2, 3)}, ValueError, r"stats has shape \[2, 3\], expected \[T, 2\] = \[3, 2\]"),
        ({"q_weight": ramp(8)}, ValueError, r"q_weight has shape \[8\]"),
        ({"k_weight": ramp(8).half()}, TypeError, "k_weight has dtype float16, expected float32"),
        ({"cos_sin": ramp(5, 8)}, ValueError, r"cos_sin has shape \[5, 8\], expected \[P, R\] = \[any, 4\]"),
        ({"positions": torch.arange(3.0)}, TypeError, "positions has dtype float32, expected int32 or int64"),
        ({"rotary_dim": 3}, ValueError, "rotary_dim=3 is odd"),
        ({"rotary_dim": 10}, ValueError, "rotary_dim=10 is outside 0..8"),
        ({"k_width": 0}, ValueError, "k_width=0 is outside 1.."),
        ({"slots": torch.arange(3).int()}, TypeError, "slots has dtype int32, expected int64"),
        ({"k_cache": ramp(2, 4, 2, 8)}, ValueError, r"k_cache has shape \[2, 4, 2, 8\]"),
        ({"v_cache": ramp(2, 4, 1, 8).half()}, TypeError, "v_cache has dtype float16, expected float32"),
    ],
)
def test_what_the_host_knows_raises_before_the_launch(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        qk_norm_rope_cache(**(cached() | SIZES | change))


def test_counting_more_heads_than_there_are_raises() -> None:
    with pytest.raises(ValueError, match=r"counted_kv_heads=2 is outside 0..1"):
        qk_sum_squares(ramp(1, 32), num_heads=2, num_kv_heads=1, head_dim=8, counted_kv_heads=2)


def test_rope_refuses_heads_of_two_widths() -> None:
    with pytest.raises(ValueError, match=r"k has shape \[3, 1, 4\], expected \[T, Hk, D\] = \[3, any, 8\]"):
        rope(ramp(3, 2, 8), ramp(3, 1, 4), ramp(5, 4), torch.arange(3), rotary_dim=4)
