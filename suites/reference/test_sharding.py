"""Every head, expert, column and row of the vocabulary has its owners, and zeros stand where there is none."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch

from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.qk_norm_rope import qk_sum_squares
from minimax_m2.reference.sharding import Cut, Layout, Span, cut, head_cut, heads, joined, span, span_cut

M2 = MiniMaxM2Config()
TP = range(1, 65)
# M2; tiny-m2; as many key/value heads as query heads; one for all; numbers that nothing divides.
HEAD_COUNTS = [(48, 8), (6, 2), (8, 8), (5, 1), (21, 7)]


@pytest.mark.parametrize("num_heads, num_kv_heads", HEAD_COUNTS)
@pytest.mark.parametrize("tp", TP)
def test_each_head_is_held_where_its_group_is(num_heads: int, num_kv_heads: int, tp: int) -> None:
    dealt = [heads(num_heads, num_kv_heads, tp=tp, rank=rank) for rank in range(tp)]
    counted = [head for own in dealt for head in own.kv[: own.counted_kv_heads]]
    pairs = [(q, own.kv[i * len(own.kv) // len(own.query)]) for own in dealt for i, q in enumerate(own.query) if q >= 0]
    assert sorted(q for q, _ in pairs) == list(range(num_heads))
    assert sorted(counted) == list(range(num_kv_heads))
    assert all(q // (num_heads // num_kv_heads) == kv for q, kv in pairs)
    assert len({(len(own.query), len(own.kv)) for own in dealt}) == 1


@pytest.mark.parametrize("tp", [1, 2, 3, 5, 6, 7, 8, 9, 12, 16, 24, 33, 48, 64])
def test_sums_of_squares_over_ranks_are_the_models(tp: int) -> None:
    qkv = torch.randn(3, (48 + 2 * 8) * 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts, whole_heads = [], []
    for rank in range(tp):
        own = heads(48, 8, tp=tp, rank=rank)
        local = cut(qkv, joined(*(head_cut(n, head_dim=4, offset=o) for n, o in
                                  ((own.query, 0), (own.kv, 192), (own.kv, 224)))), dim=1)  # fmt: skip
        sums = partial(qk_sum_squares, local, num_heads=len(own.query), num_kv_heads=len(own.kv), head_dim=4)
        parts.append(sums(counted_kv_heads=own.counted_kv_heads))
        whole_heads.append(sums())
    expected = qk_sum_squares(qkv, num_heads=48, num_kv_heads=8, head_dim=4)
    # derived: two orders of a sum of 192 squares differ by at most 2 * 192 roundings of 2^-53
    assert torch.allclose(torch.stack(parts).sum(0), expected, rtol=2 * 192 * 2.0**-53, atol=0)
    replicated = torch.stack(whole_heads).sum(0)[:, 1] / expected[:, 1]
    assert bool((replicated > 1.01).all()) == (tp > 8)


@pytest.mark.parametrize("count, parts, multiple", [(1536, 8, 32), (1536, 13, 128), (200064, 7, 64), (5, 8, 1)])
def test_spans_cover_a_dimension_once(count: int, parts: int, multiple: int) -> None:
    spans = [span(count, parts=parts, index=index, multiple=multiple) for index in range(parts)]
    covered = [place for own in spans for place in range(own.start, own.stop)]
    assert covered == list(range(count))
    assert {own.size for own in spans} == {spans[0].size}
    assert spans[0].size % multiple == 0


@pytest.mark.parametrize(
    "layout, width, experts",
    [
        (Layout(tp=4, rank=3), Span(1152, 1536, 384), Span(0, 256, 256)),
        (Layout(tp=8, rank=7), Span(1344, 1536, 192), Span(0, 256, 256)),
        (Layout(tp=8, rank=7, widths="pad"), Span(1536, 1536, 256), Span(0, 256, 256)),
        (Layout(dp=4, ep=4, rank=3, widths="ep"), Span(0, 1536, 1536), Span(192, 256, 64)),
        (Layout(tp=4, ep=4, rank=1), Span(0, 1536, 1536), Span(64, 128, 64)),
        (Layout(tp=2, dp=2, ep=2, rank=3), Span(768, 1536, 768), Span(128, 256, 128)),
    ],
    ids=["TP4", "TP8", "TP8 padded", "EP4", "TEP4", "mixed"],
)
def test_deployed_layouts_own_what_they_should(layout: Layout, width: Span, experts: Span) -> None:
    assert (layout.width(M2), layout.experts(M2)) == (width, experts)


@pytest.mark.parametrize("tp, dp, ep", [(4, 2, 1), (2, 4, 8), (6, 1, 3), (1, 3, 3), (3, 2, 2)])
def test_each_column_of_each_expert_has_one_owner(tp: int, dp: int, ep: int) -> None:
    owners = Counter[tuple[int, int]]()
    for rank in range(tp * dp):
        layout = Layout(tp=tp, dp=dp, ep=ep, rank=rank)
        experts, width = layout.experts(M2), layout.width(M2)
        places = [(e, c) for e in range(experts.start, experts.stop) for c in range(width.start, width.stop, 32)]
        owners.update(places)
    assert len(owners) == 256 * 1536 // 32
    assert set(owners.values()) == {1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_cut_copies_its_pieces_and_zeros(dtype: torch.dtype) -> None:
    x = torch.arange(24.0).reshape(2, 6, 2).to(dtype)
    own = cut(x, Cut(((4, 2), (-1, 1), (0, 1))), dim=1)
    assert own.float().tolist() == [[*rows[4:], [0, 0], rows[0]] for rows in x.float().tolist()]
    assert own.dtype == dtype


def test_a_cut_knows_where_each_place_came_from() -> None:
    assert span_cut(Span(4, 6, 5), offset=10).sources.tolist() == [14, 15, -1, -1, -1]
    assert head_cut([2, -1], head_dim=2, offset=1).sources.tolist() == [5, 6, -1, -1]
    assert span_cut(Span(3, 3, 0)).sources.tolist() == []


def test_vocabulary_shares_are_multiples_and_a_lone_rank_pads_nothing() -> None:
    assert Layout(tp=4, rank=3).vocabulary(M2) == Span(150144, 200064, 50048)
    assert Layout(dp=2).vocabulary(MiniMaxM2Config(vocab_size=31)) == Span(0, 31, 31)
    assert Layout(tp=2, rank=1).vocabulary(MiniMaxM2Config(vocab_size=31)) == Span(31, 31, 64)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tp": 0}, "tp=0; expected at least 1"),
        ({"tp": 2, "rank": 2}, r"rank=2 is outside 0\.\.1: tp=2 times dp=1"),
        ({"tp": 4, "ep": 3}, "ep=3 does not divide the 4 ranks"),
        ({"widths": "slice"}, "widths='slice' is unknown; use reblock, pad, ep"),
        ({"tp": 4, "widths": "ep"}, "ep=1 must be the number of ranks, 4"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**fields)  # type: ignore[arg-type]


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"index=3 is outside 0\.\.2, the parts of a dimension of 7"):
        span(7, parts=3, index=3)
