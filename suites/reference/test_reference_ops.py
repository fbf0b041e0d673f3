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
from minimax_m2.reference.add_rms_norm_quant import add_rms_norm_quant
from minimax_m2.reference.attention import attention
from minimax_m2.reference.block_dequant import block_dequant
from minimax_m2.reference.block_quant import block_quant
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.embedding import embedding
from minimax_m2.reference.experts import experts, pack_experts
from minimax_m2.reference.fp8_linear import fp8_linear, pack_fp8_linear
from minimax_m2.reference.kv_cache import kv_cache
from minimax_m2.reference.linear import linear
from minimax_m2.reference.lm_head import lm_head
from minimax_m2.reference.moe_align import moe_align
from minimax_m2.reference.qk_norm_rope import qk_norm_rope, qk_sum_squares
from minimax_m2.reference.qk_norm_rope_cache import qk_norm_rope_cache
from minimax_m2.reference.rms_norm import rms_norm
from minimax_m2.reference.rope import cos_sin_table, rope
from minimax_m2.reference.router import router
from minimax_m2.reference.router_gemm import router_gemm
from minimax_m2.reference.routing import pack_routing, routing, selection_scores, unpack_routing, weights_at
from minimax_m2.reference.swiglu import swiglu
from minimax_m2.reference.swiglu_quant import swiglu_quant

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


def test_shards_of_the_embedding_sum_to_the_whole() -> None:
    weight, ids = drawn(10, H), torch.tensor([0, 9, 4, 5, 4], dtype=torch.int32)
    halves = embedding(ids, weight[:5]) + embedding(ids, weight[5:], vocab_start=5)
    assert torch.equal(halves, embedding(ids, weight))
    assert torch.equal(halves, weight[ids])


def test_linear_keeps_a_float64_reading_in_float64() -> None:
    x, weight = drawn(T, H), drawn(I, H, seed=1)
    assert torch.equal(linear(x, weight, out_dtype=torch.bfloat16), x @ weight.T)
    assert linear(x.bfloat16(), weight.bfloat16(), out_dtype=torch.float32).dtype == torch.float32


def test_router_gemm_never_rounds_below_float32() -> None:
    x, weight = drawn(T, H).bfloat16(), drawn(E, H, seed=1).float()
    assert torch.equal(router_gemm(x, weight), x.float() @ weight.T)


def test_router_is_routing_of_router_gemm() -> None:
    x, weight, bias = drawn(T, H), drawn(E, H, seed=1), drawn(E, seed=2)
    actual, expected = router(x, weight, bias, top_k=K), routing(router_gemm(x, weight), bias, top_k=K)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_lm_head_drops_padding_columns_and_unwanted_rows() -> None:
    x, weight = drawn(T, H), drawn(12, H, seed=1)
    logits = lm_head(x, weight, rows=torch.tensor([4, 0]), vocab_size=10)
    assert torch.equal(logits, x[[4, 0]] @ weight[:10].T)


@pytest.mark.parametrize("width", [128, 130, 300])  # whole groups, a tail of two, two groups and a tail
@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
def test_dequantised_blocks_are_within_half_a_step_of_e4m3(width: int, scale_format: str) -> None:
    x = drawn(T, width)
    q, scale = block_quant(x, scale_format=scale_format)
    back = block_dequant(q, scale, block=(1, 128), dtype=torch.float64)
    widest = scale.repeat_interleave(128, -1)[:, :width]
    # e4m3 keeps 4 bits: half a step is at most 2^-4 of the value, and 2^-10 of the scale below its normals (2^-6).
    # Quotient, product and the scale round in float64.
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2.0**-4, widest * 2.0**-10) * (1 + 8 * U)).all()


def test_ue8m0_scales_are_the_next_powers_of_two() -> None:
    x = torch.tensor([[448.0], [449.0], [224.0], [1.0]], dtype=torch.float64)
    assert block_quant(x, group=1, scale_format="ue8m0")[1].flatten().tolist() == [1.0, 2.0, 0.5, 2.0**-8]


def test_block_quant_of_zeros_is_zero() -> None:
    q, scale = block_quant(torch.zeros(T, H))
    assert (q.float() == 0).all()
    assert (scale > 0).all()


def test_block_dequant_refuses_a_grid_that_its_blocks_do_not_make() -> None:
    with pytest.raises(ValueError, match="needs"):
        block_dequant(drawn(T, 130), drawn(T, 1), block=(1, 128), dtype=torch.float64)


def test_fused_quantisers_quantise_what_their_parts_return() -> None:
    x, residual, weight = drawn(T, H), drawn(T, H, seed=1), drawn(H, seed=2)
    y, z = add_rms_norm(x, residual, weight, eps=1e-6)
    expected = (*block_quant(y, group=16), z)
    assert all(map(torch.equal, add_rms_norm_quant(x, residual, weight, eps=1e-6, group=16), expected))
    assert all(map(torch.equal, swiglu_quant(x, group=16), block_quant(swiglu(x), group=16)))


def test_swiglu_quant_int8_is_within_half_a_step() -> None:
    x = drawn(T, 2 * I)
    q, scale = swiglu_quant(x, group=I, quant="int8")
    # The quotient and the product round in float64, relative to 127 steps.
    assert ((q * scale - swiglu(x)).abs() <= (0.5 + 127 * 4 * U) * scale).all()


def test_fp8_linear_multiplies_by_the_dequantised_weight() -> None:
    x, weight, scale = drawn(T, 130), drawn(140, 130, seed=1), drawn(2, 2, seed=2)
    dense = block_dequant(weight, scale, dtype=torch.float64)
    assert torch.equal(fp8_linear(x, pack_fp8_linear(weight, scale)), linear(x, dense))
    assert dense[139, 129] == weight[139, 129] * scale[1, 1]


def caches(*, page: int = 4) -> tuple[Tensor, Tensor]:
    """Make caches of six pages, filled with NaN so that a wrong read shows."""
    return torch.full((6, page, 2, 32), torch.nan).double(), torch.full((6, page, 2, 32), torch.nan).double()


def test_kv_cache_writes_its_slots_and_no_others() -> None:
    k, v, (k_cache, v_cache) = drawn(3, 2, 32), drawn(3, 2, 32, seed=1), caches()
    kv_cache(k, v, k_cache, v_cache, torch.tensor([5, -1, 22]), k_scale=2.0)
    assert torch.equal(k_cache[1, 1], k[0] / 2)
    assert torch.equal(v_cache[5, 2], v[2])
    assert k_cache.isnan().all((-1, -2)).sum() == v_cache.isnan().all((-1, -2)).sum() == 6 * 4 - 2


def test_e4m3_caches_saturate() -> None:
    cache = torch.zeros(1, 1, 1, 2).to(torch.float8_e4m3fn)
    kv_cache(torch.full((1, 1, 2), 1e4), torch.full((1, 1, 2), -1e4), cache, cache, torch.tensor([0]))
    assert (cache.float() == -448).all()


def test_qk_norm_rope_cache_stores_what_qk_norm_rope_returns() -> None:
    inputs = (drawn(T, 10 * 32), None, drawn(6 * 32, seed=1), drawn(2 * 32, seed=2),
              cos_sin_table(num_positions=9, rotary_dim=16, theta=1e4), torch.arange(T))  # fmt: skip
    (k_cache, v_cache), slots = caches(), torch.tensor([3, 9, 1, 20, 4])
    q, k, v = qk_norm_rope(*inputs, **NORM)
    assert torch.equal(qk_norm_rope_cache(*inputs, k_cache, v_cache, slots, **NORM), q)
    assert torch.equal(k_cache.flatten(0, 1)[slots], k)
    assert torch.equal(v_cache.flatten(0, 1)[slots], v)


def test_attention_over_pages_is_dense_causal_attention() -> None:
    q, k, v = drawn(2, 6, 32), drawn(7, 2, 32, seed=1), drawn(7, 2, 32, seed=2)
    k_cache, v_cache = caches()
    table = torch.tensor([[5, 2, 99]], dtype=torch.int32)  # 99: a page that does not exist and must not be read
    slots = torch.tensor([20, 21, 22, 23, 8, 9, 10])
    kv_cache(k, v, k_cache, v_cache, slots)
    lens, starts = torch.tensor([7]), torch.tensor([0, 2])
    y = attention(q, k_cache, v_cache, table, lens, starts, scale=0.25, max_query_len=2, max_seq_len=7)
    visible = torch.tensor([[True] * 6 + [False], [True] * 7])
    wide_k, wide_v = (x.transpose(0, 1).repeat_interleave(3, 0) for x in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), wide_k, wide_v, attn_mask=visible, scale=0.25
    ).transpose(0, 1)
    # A score errs by D * U of its magnitude m, twice; a probability by e^(2 D U m); P @ v by S terms; both sides.
    m = 0.25 * (q.abs().amax() * k.abs().amax() * 32)
    assert ((y - expected).abs() <= 2 * (2 * 32 * m + 2 * 7 + 10) * U * v.abs().amax()).all()


def test_attention_rows_without_keys_are_zero() -> None:
    k_cache, v_cache = torch.ones(6, 4, 2, 32), torch.ones(6, 4, 2, 32)
    lens, starts = torch.tensor([1, 0]), torch.tensor([0, 3, 4], dtype=torch.int32)
    y = attention(
        torch.ones(6, 6, 32), k_cache, v_cache, torch.zeros(2, 1, dtype=torch.int32), lens, starts,
        scale=1.0, max_query_len=3, max_seq_len=4,
    )  # fmt: skip
    # Of three queries over one key only the last sees it; the second sequence is empty; rows 4 and 5 are padding.
    assert y.abs().amax((-1, -2)).tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("block", [1, 4, 16])
def test_moe_align_gives_every_slot_one_place_in_a_block_of_its_expert(block: int) -> None:
    ids = torch.tensor([[0, 7], [7, -1], [3, 7], [2, 5]], dtype=torch.int32)
    expert_map = torch.tensor([0, -1, 1, 2, -1, -1, -1, 3], dtype=torch.int32)  # expert 5 lives elsewhere
    slots, experts_of, num_padded, counts = moe_align(ids, num_experts=E, block=block, expert_map=expert_map)
    used = slots[: int(num_padded)]
    real = used < ids.numel()
    owner = experts_of.repeat_interleave(block)[: int(num_padded)]
    assert sorted(used[real].tolist()) == [0, 1, 2, 4, 5, 6]
    assert torch.equal(expert_map[ids.flatten()[used[real]].long()], owner[real])
    assert (slots[int(num_padded) :] == ids.numel()).all()
    assert (experts_of[int(num_padded) // block :] == -1).all()
    assert counts.tolist() == [1, 1, 1, 3, 0, 0, 0, 0]
    assert int(num_padded) == sum(-(-c // block) * block for c in counts.tolist())


def test_moe_align_of_no_tokens_is_empty() -> None:
    slots, experts_of, num_padded, counts = moe_align(torch.empty(0, K, dtype=torch.int32), num_experts=E, block=16)
    assert (len(slots), len(experts_of), int(num_padded), int(counts.sum())) == (0, 0, 0, 0)
