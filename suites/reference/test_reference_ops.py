"""Each reference does what its formula says: properties that need no kernel and no second copy of the formula.

Everything runs in float64. Bounds count roundings: one operation errs by at most U relative to its result, a sum of
n terms by n * U relative to the sum of magnitudes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.reference.add_rms_norm import add_rms_norm
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.experts import experts, pack_experts
from minimax_m2.reference.qk_norm_rope import qk_norm_rope, qk_sum_squares
from minimax_m2.reference.rms_norm import rms_norm
from minimax_m2.reference.rope import cos_sin_table, rope
from minimax_m2.reference.routing import pack_routing, routing, selection_scores, unpack_routing, weights_at
from minimax_m2.reference.swiglu import swiglu

U = 2.0**-53  # unit roundoff of float64
T, H, I, E, K = 5, 64, 32, 8, 3
HEADS: dict[str, Any] = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32}
NORM: dict[str, Any] = {**HEADS, "rotary_dim": 16, "q_width": 6 * 32, "k_width": 2 * 32, "eps": 1e-6}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Draw normal float64 numbers from a seed of their own."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_leaves_rows_of_root_mean_square_one() -> None:
    y = rms_norm(drawn(T, H), torch.ones(H, dtype=torch.float64), eps=0.0)
    # H squares (3 U each: x, rstd, product enter squared), their sum (H * U), twice rsqrt's own error.
    assert ((y.square().mean(-1) - 1).abs() <= (2 * H + 16) * U).all()


def test_add_rms_norm_of_rounded_and_unrounded_sums_differ() -> None:
    x, residual, weight = drawn(T, H), drawn(T, H, seed=1), drawn(H, seed=2)
    fields = {"residual": "bfloat16", "normalised": None, "out": None}
    a, stored_a = add_rms_norm(x, residual, weight, eps=1e-6, contract=Contract({**fields, "variance_of": "rounded"}))
    b, stored_b = add_rms_norm(x, residual, weight, eps=1e-6, contract=Contract({**fields, "variance_of": "unrounded"}))
    assert torch.equal(stored_a, stored_b)
    assert torch.equal(a, rms_norm(stored_a, weight, eps=1e-6, contract=Contract(fields)))
    assert torch.equal(b, rms_norm(x + residual, weight, eps=1e-6))
    assert not torch.equal(a, b)


def test_swiglu_of_a_zero_gate_is_zero() -> None:
    assert torch.equal(swiglu(torch.cat([torch.zeros(T, I), torch.ones(T, I)], -1)), torch.zeros(T, I))


def test_rope_preserves_the_norm_of_pairs_and_passes_the_rest() -> None:
    q, k = drawn(T, 6, 32), drawn(T, 2, 32, seed=1)
    table = cos_sin_table(num_positions=100, rotary_dim=16, theta=1e4)
    turned, _ = rope(q, k, table, torch.tensor([0, 1, 7, 50, 99]), rotary_dim=16)
    before, after = (torch.hypot(x[..., :8], x[..., 8:16]) for x in (q, turned))
    # cos and sin off by U each bend the norm by U; two products and a sum by 2 U; hypot on either side by 1 U.
    assert ((after - before).abs() <= 8 * U * before).all()
    assert torch.equal(turned[..., 16:], q[..., 16:])
    assert torch.equal(turned[0], q[0])


def test_rope_refuses_a_position_outside_its_table() -> None:
    table = cos_sin_table(num_positions=4, rotary_dim=16, theta=1e4)
    with pytest.raises(IndexError):
        rope(drawn(1, 1, 32), drawn(1, 1, 32), table, torch.tensor([-1]), rotary_dim=16)


def test_sums_over_ranks_that_count_each_kv_head_once_are_the_single_ranks_sums() -> None:
    qkv = drawn(T, 10 * 32)
    q, k, v = qkv.split([6 * 32, 2 * 32, 2 * 32], -1)
    whole = qk_sum_squares(qkv, **HEADS)
    shares = [
        qk_sum_squares(
            torch.cat([q[:, 64 * r : 64 * r + 64], k[:, 32 * h : 32 * h + 32], v[:, 32 * h : 32 * h + 32]], -1),
            num_heads=2, num_kv_heads=1, head_dim=32, counted_kv_heads=counted,
        )
        for r, (h, counted) in enumerate([(0, 1), (0, 0), (1, 1)])
    ]  # fmt: skip
    # Both orders of summation err by at most one U per term.
    assert ((sum(shares) - whole).abs() <= 2 * 6 * 32 * U * whole).all()


def test_qk_norm_rope_is_the_norm_over_all_heads_then_rope() -> None:
    qkv, q_weight, k_weight = drawn(T, 10 * 32), drawn(6 * 32, seed=1), drawn(2 * 32, seed=2)
    table, positions = cos_sin_table(num_positions=9, rotary_dim=16, theta=1e4), torch.arange(T)
    q, k, v = qk_norm_rope(qkv, None, q_weight, k_weight, table, positions, **NORM)
    split = qkv.split([6 * 32, 2 * 32, 2 * 32], -1)
    expected_q, expected_k = rope(
        rms_norm(split[0], q_weight, eps=1e-6).reshape(T, 6, 32),
        rms_norm(split[1], k_weight, eps=1e-6).reshape(T, 2, 32),
        table, positions, rotary_dim=16,
    )  # fmt: skip
    # The two differ in how the mean is summed (width * U) and scaled (4 U); a pair's magnitude bounds its members.
    scale = 2 * max(expected_q.abs().max().item(), expected_k.abs().max().item())
    assert ((q - expected_q).abs() <= (6 * 32 + 4) * U * scale).all()
    assert ((k - expected_k).abs() <= (6 * 32 + 4) * U * scale).all()
    assert torch.equal(v, split[2].reshape(T, 2, 32))
    assert all(x.is_contiguous() for x in (q, k, v))


def test_routing_weighs_one_expert_by_exactly_one() -> None:
    weights, _ = routing(drawn(T, E), drawn(E, seed=1), top_k=1)
    assert torch.equal(weights, torch.ones(T, 1, dtype=torch.float64))


def test_routing_selects_by_biased_and_weighs_by_unbiased_scores() -> None:
    logits, bias = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.0, 3.0, -1.0, 2.0], dtype=torch.float64)
    weights, ids = routing(logits, bias, top_k=2)
    assert ids.tolist() == [[1, 3]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_routing_prefers_the_lower_of_equal_experts() -> None:
    _, ids = routing(torch.zeros(1, E), None, top_k=K)
    assert ids.tolist() == [[0, 1, 2]]


def test_routing_gives_rows_from_num_valid_on_no_experts() -> None:
    weights, ids = routing(drawn(T, E), None, top_k=K, num_valid=torch.tensor(2, dtype=torch.int32))
    assert (ids[2:] == -1).all()
    assert (weights[2:] == 0).all()
    assert (ids[:2] >= 0).all()


def test_routing_is_composed_of_its_two_halves() -> None:
    logits, bias = drawn(T, E), drawn(E, seed=1)
    weights, ids = routing(logits, bias, top_k=K, scale=2.5, eps=1e-20, scoring="softmax")
    scores, _ = selection_scores(logits, bias, scoring="softmax")
    assert torch.equal(weights, weights_at(scores, ids, scale=2.5, eps=1e-20))


@pytest.mark.parametrize("top_k", [0, E + 1])
def test_routing_refuses_a_top_k_that_no_expert_count_allows(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k={top_k}"):
        routing(drawn(T, E), None, top_k=top_k)


def test_unpack_routing_undoes_pack_routing() -> None:
    weights = drawn(T, K).to(torch.bfloat16).to(torch.float32)  # negative ones too: their sign must not reach the id
    ids = torch.tensor([[7, 3, -1]], dtype=torch.int32).expand(T, K)
    back, back_ids = unpack_routing(pack_routing(weights, ids, expert_start=3), expert_start=3)
    assert torch.equal(back, weights)
    assert torch.equal(back_ids, ids)


def naive_experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute every expert for every token; also the same sum of magnitudes, which error bounds scale with."""
    gate, up = torch.einsum("th,ejh->tej", x, w13).chunk(2, -1)
    dense = torch.zeros(len(x), len(w13), dtype=x.dtype).index_put((torch.arange(len(x))[:, None], ids.long()), weights)
    act = gate * torch.sigmoid(gate) * up
    magnitude = torch.einsum("th,ejh->tej", x.abs(), w13.abs()).chunk(2, -1)
    return (
        torch.einsum("te,tei,ehi->th", dense, act, w2),
        torch.einsum("te,tei,ehi->th", dense.abs(), magnitude[0] * magnitude[1], w2.abs()),
    )


def test_experts_equal_every_expert_computed_for_every_token() -> None:
    x, w13, w2 = drawn(T, H), drawn(E, 2 * I, H, seed=1), drawn(E, H, I, seed=2)
    weights, ids = routing(drawn(T, E, seed=3), None, top_k=K)
    expected, magnitude = naive_experts(x, w13, w2, weights, ids)
    # Gate and up each H terms, down I terms, combine E terms, SiLU's slope at most 1.1 and ~10 roundings; both sides.
    # Where |gate| is large SiLU is at most |gate|, so magnitude * (1.1 H + H + I + E + 10) U bounds one side.
    bound = 2 * (2.1 * H + I + E + 10) * U * magnitude
    assert ((experts(x, pack_experts(w13, w2), weights, ids) - expected).abs() <= bound).all()


def test_experts_leave_rows_without_experts_exactly_zero() -> None:
    packed = pack_experts(drawn(E, 2 * I, H, seed=1), drawn(E, H, I, seed=2))
    ids = torch.tensor([[0, 1], [-1, -1], [4, 5]])
    expert_map = torch.tensor([0, 1, 2, 3, -1, -1, -1, -1], dtype=torch.int32)
    y = experts(drawn(3, H), packed, torch.ones(3, 2, dtype=torch.float64), ids, expert_map=expert_map)
    assert (y[0] != 0).any()
    assert (y[1:] == 0).all()


def test_experts_take_packed_routing() -> None:
    x, packed = drawn(T, H), pack_experts(drawn(E, 2 * I, H, seed=1), drawn(E, H, I, seed=2))
    weights, ids = routing(drawn(T, E, seed=3).float(), None, top_k=K)
    words = pack_routing(weights, ids)
    assert torch.equal(experts(x, packed, None, words), experts(x, packed, *unpack_routing(words)))


def test_experts_dequantise_by_multiplying_with_the_blocks_scale() -> None:
    w13, w2 = drawn(E, 2 * I, H, seed=1), drawn(E, H, I, seed=2)
    half: dict[str, Any] = {"w13_scale": torch.full((E, 1, 1), 0.5), "w2_scale": torch.full((E, 1, 1), 0.5)}
    x, weights, ids = drawn(T, H), torch.ones(T, 1, dtype=torch.float64), torch.zeros(T, 1, dtype=torch.int32)
    # Scales are powers of two, so the two readings agree bit for bit.
    scaled = experts(x, pack_experts(2 * w13, 2 * w2, **half), weights, ids)
    assert torch.equal(scaled, experts(x, pack_experts(w13, w2), weights, ids))
