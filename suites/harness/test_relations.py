"""Relations hold for plain torch and for our kernels on every instruction set, and break where they must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.relation import Change, Exactness, Relation, Standing, all_relations, relate, relations_of
from minimax_m2.harness.relations.memory import relocated
from minimax_m2.harness.sampling import sampled

# One for each instruction set.
CASES = 4
# Sums over experts run in the order of their labels, those of ranks are added last, and ties go to the lower label:
# equal within the budget only.
ORDERED = (
    *("experts relabelled", "scores relabelled", "sums over ranks", "widths over ranks", "experts over ranks"),
    # The two products of a pair change places, of which the second is fused.
    "positions shifted",
)


def findings(
    relation: Relation, op_name: str, provider: Provider, cases: int = CASES, exactness: Exactness | None = None
) -> Iterator[tuple[Standing, str]]:
    """What each case shows of a relation, with evidence; the provider's variants take turns."""
    op = find_op(op_name)
    for position, case in enumerate(sampled(op, cases)):
        variant = provider.variants[position % len(provider.variants)]
        finding = relate(relation, op, case, provider, variant, exactness)
        yield finding.standing, f"{variant} {case.json}: {finding.evidence}"


def broken(found: Iterable[tuple[Standing, str]]) -> str:
    """The first evidence that a relation breaks."""
    return next((evidence for standing, evidence in found if standing is Standing.BROKEN), "")


def test_relations_hold_for_our_kernels_to_the_bit(op_name: str) -> None:
    provider = ours()
    if not provider.offers(op_name):
        pytest.skip(f"ours does not offer {op_name}")
    found = {}
    for relation in relations_of(op_name):
        exactness = None if relation.name in ORDERED else Exactness.BITS
        found[relation.name] = broken(findings(relation, op_name, provider, exactness=exactness))
    assert {name: evidence for name, evidence in found.items() if evidence} == {}


@pytest.mark.parametrize("name", all_relations())
def test_a_relation_moves_something_on_every_op_that_it_names(name: str) -> None:
    relation = all_relations()[name]
    # Whether it holds is asked elsewhere, so that bits, which need no budget, will do here.
    moves = {
        op: any(s in (Standing.HOLDS, Standing.BROKEN) for s, _ in findings(relation, op, plain(), 24, Exactness.BITS))
        for op in relation.ops
    }
    assert [op for op, does in moves.items() if not does] == []


def test_a_relation_names_ops_that_exist() -> None:
    assert {op for relation in all_relations().values() for op in relation.ops} <= set(all_ops())


def depends_on_place(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Adds the number of its row to a row."""
    y = right("rms_norm")(x, weight, eps=eps)
    return y + torch.arange(len(y))[:, None].to(y.dtype)


def depends_on_the_batch(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Normalises by the root mean square of all rows."""
    return (x.float() * torch.rsqrt(x.float().square().mean() + eps) * weight.float()).to(x.dtype)


def covers_sixty_four_rows(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Leaves what lies behind its grid at 0."""
    y = right("rms_norm")(x, weight, eps=eps)
    y[64:] = 0
    return y


def depends_on_alignment(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Skips the first channel of rows that do not begin a cache line."""
    y = right("rms_norm")(x, weight, eps=eps)
    if x.data_ptr() % 64:
        y[:, 0] = 0
    return y


def swallows_nan(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Makes numbers of what is none."""
    return right("rms_norm")(x.nan_to_num(), weight, eps=eps)


def spreads_nan(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Lets a NaN of one row into the next."""
    y = right("rms_norm")(x, weight, eps=eps)
    return y + y.roll(1, 0) * 0


def saturates(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Clamps the weight at its own largest magnitude, or at 1."""
    return right("rms_norm")(x, weight.clamp(-1, 1), eps=eps)


def index_dtype_matters(ids: Tensor, weight: Tensor, *, vocab_start: int = 0) -> Tensor:
    rows = right("embedding")(ids, weight, vocab_start=vocab_start)
    return rows if ids.dtype == torch.int64 else rows + 1


def low_labels_are_special(x: Tensor, packed: Any, weights: Any, ids: Tensor, **more: Any) -> Tensor:
    y = right("experts")(x, packed, weights, ids, **more)
    return y + (2 * ids < len(packed.w13)).sum(-1, keepdim=True).to(y.dtype) * 64


def idle_experts_are_read(x: Tensor, packed: Any, *routed: Any, **more: Any) -> Tensor:
    y = right("experts")(x, packed, *routed, **more)
    return y + (packed.w13[-1].float().sum() * 0).to(y.dtype)


def lowest_score_wins_ties_by_index(logits: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    return right("routing")(logits - torch.arange(logits.shape[1]) / 64, bias, **choice)


def first_position_is_special(q: Tensor, k: Tensor, table: Tensor, positions: Tensor, **more: Any) -> Any:
    turned, k = right("rope")(q, k, table, positions, **more)
    return turned + (positions > 20)[:, None, None].to(q.dtype), k


def pairs_are_neighbours(q: Tensor, k: Tensor, table: Tensor, positions: Tensor, *, rotary_dim: int) -> Any:
    """Turns neighbours, as GPT-J does."""
    cos, sin = table[positions.long(), None, :rotary_dim].float().chunk(2, -1)

    def turned(x: Tensor) -> Tensor:
        a, b = x[..., :rotary_dim:2].float(), x[..., 1:rotary_dim:2].float()
        pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return torch.cat([pairs.to(x.dtype), x[..., rotary_dim:]], -1)

    return turned(q), turned(k)


def rows_touch(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Takes rows for neighbours, however far they lie apart."""
    return right("rms_norm")(x.as_strided(x.shape, (x.shape[1], 1)), weight, eps=eps)


def heads_touch(q: Tensor, k: Tensor, *rotation: Tensor, **more: Any) -> Any:
    """Takes heads for neighbours, however far they lie apart."""
    near = (x.as_strided(x.shape, (x.stride(0), x.shape[2], 1)) for x in (q, k))
    return right("rope")(*near, *rotation, **more)


def weighs_padding(logits: Tensor, bias: Tensor | None, *, num_valid: Tensor | None = None, **choice: Any) -> Any:
    """Routes every row, whatever is said of them."""
    return right("routing")(logits, bias, **choice)


def leaves_infinity_out(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x.nan_to_num(torch.nan, 0.0, 0.0), weight, eps=eps)


def adds(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attention that adds what ``change`` makes of its arguments."""

    def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, *places: Tensor, **more: Any) -> Tensor:
        y = right("attention")(q, k_cache, v_cache, table, *places, **more)
        return y + change(q, k_cache, table).to(y.dtype)

    return attention


def width_matters(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    return right("linear")(x, weight, out_dtype=out_dtype) * len(weight)


def blocks_matter(x: Tensor, packed: Any, **more: Any) -> Tensor:
    return right("fp8_linear")(x, packed, **more) * len(packed.scale)


def means_of_one_rank(qkv: Tensor, *, num_heads: int, **sizes: int) -> Tensor:
    """Divides by its own heads before ranks add up."""
    return right("qk_sum_squares")(qkv, num_heads=num_heads, **sizes) / num_heads


def adds_its_width(x: Tensor, packed: Any, *routed: Any, **more: Any) -> Tensor:
    """A shared part that every rank adds."""
    return right("experts")(x, packed, *routed, **more) + packed.w2.shape[-1] ** 2


def adds_what_it_holds(x: Tensor, packed: Any, *routed: Any, **more: Any) -> Tensor:
    return right("experts")(x, packed, *routed, **more) + len(packed.w13) ** 2


def sequences_are_counted(*tensors: Tensor, **more: Any) -> Tensor:
    o = right("gated_delta_rule")(*tensors, **more)
    return o + len(tensors[-1]) * 8


def highest_row_is_taken_off(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    """Subtracts the largest logit of all rows."""
    logits = right("lm_head")(x, weight, rows=rows, vocab_size=vocab_size)
    return logits - logits.max() if logits.numel() else logits


def one_scale_for_all(k: Tensor, v: Tensor, *caches_and_slots: Tensor, **scales: Any) -> None:
    """Stores values by the largest of the batch."""
    right("kv_cache")(k, v / v.float().abs().amax().clamp(1e-3).to(v.dtype), *caches_and_slots, **scales)


CONTROLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "tokens permuted": ("rms_norm", depends_on_place),
    "a token alone": ("rms_norm", depends_on_the_batch),
    "tokens repeated": ("rms_norm", covers_sixty_four_rows),
    "relocation": ("rms_norm", depends_on_alignment),
    "a row of NaN": ("rms_norm", swallows_nan),
    "a row of infinities": ("rms_norm", leaves_infinity_out),
    "doubled": ("rms_norm", saturates),
    "rows apart": ("rms_norm", rows_touch),
    "heads apart": ("rope", heads_touch),
    "padding rows": ("routing", weighs_padding),
    "positions shifted": ("rope", pairs_are_neighbours),
    "the other index dtype": ("embedding", index_dtype_matters),
    "experts relabelled": ("experts", low_labels_are_special),
    "idle experts": ("experts", idle_experts_are_read),
    "scores relabelled": ("routing", lowest_score_wins_ties_by_index),
    "positions relabelled": ("rope", first_position_is_special),
    "pages relabelled": ("attention", adds(lambda q, cache, table: table[:, :1].clamp(0, 99).sum() * 8.0)),
    "pages halved": ("attention", adds(lambda q, cache, table: torch.tensor(cache.shape[1] * 8.0))),
    "head groups permuted": ("attention", adds(lambda q, cache, table: torch.arange(q.shape[1])[:, None] * 8.0)),
    "a query at a time": ("attention", adds(lambda q, cache, table: torch.tensor(len(table) * 8.0))),
    "prompts in two parts": ("attention", adds(lambda q, cache, table: torch.tensor(len(table) * 8.0))),
    "a sequence alone": ("gated_delta_rule", sequences_are_counted),
    "a prompt alone": ("attention", adds(lambda q, cache, table: torch.tensor(len(table) * 8.0))),
    "a row of logits alone": ("lm_head", highest_row_is_taken_off),
    "a stored token alone": ("kv_cache", one_scale_for_all),
    "columns over ranks": ("linear", width_matters),
    "blocks over ranks": ("fp8_linear", blocks_matter),
    "heads over ranks": ("attention", adds(lambda q, cache, table: torch.tensor(q.shape[1] * 8.0))),
    "sums over ranks": ("qk_sum_squares", means_of_one_rank),
    "widths over ranks": ("experts", adds_its_width),
    "experts over ranks": ("experts", adds_what_it_holds),
    "idle pages": ("attention", adds(lambda q, cache, table: torch.tensor(len(cache) * 8.0))),
}


@pytest.mark.parametrize("name", all_relations())
def test_a_relation_breaks_for_a_provider_that_violates_it(name: str) -> None:
    op_name, function = CONTROLS[name]
    packs = {name: right(name) for name in ("pack_experts", "pack_fp8_linear")}
    wrong = from_object(SimpleNamespace(**{op_name: function}, **packs), name="control")
    assert broken(findings(all_relations()[name], op_name, wrong, cases=24)) != ""


def test_a_nan_that_spreads_is_told() -> None:
    wrong = from_object(SimpleNamespace(rms_norm=spreads_nan), name="control")
    assert broken(findings(all_relations()["a row of NaN"], "rms_norm", wrong)) != ""


def test_a_change_that_moves_nothing_is_vacuous() -> None:
    idle = Relation(name="idle", ops=("rms_norm",), transform=lambda op, case, given: unchanged(given))
    assert {standing for standing, _ in findings(idle, "rms_norm", plain())} == {Standing.VACUOUS}


def unchanged(given: dict[str, Any]) -> Change:
    return Change(dict(given), lambda outputs, base: outputs)


def test_bits_are_asked_for_where_a_provider_promises_them() -> None:
    noisy = from_object(SimpleNamespace(rms_norm=a_last_digit_by_alignment), name="control")
    relation, op = all_relations()["relocation"], find_op("rms_norm")
    case = op.case(T=2, H=64, dtype="float32")
    assert relate(relation, op, case, noisy).standing is Standing.HOLDS
    assert relate(relation, op, case, noisy, exactness=Exactness.BITS).standing is Standing.BROKEN


def a_last_digit_by_alignment(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    y = right("rms_norm")(x, weight, eps=eps)
    return y.nextafter(y * 2) if x.data_ptr() % 64 else y


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_relocated_stays_on_its_device(device: str) -> None:
    """Packed tensors are not brought to a device again."""
    x = torch.zeros(3, 8, dtype=torch.bfloat16, device=device)[:, :5]
    found = relocated(x, 16)
    assert (found.device, found.shape, found.stride(), found.dtype) == (x.device, x.shape, x.stride(), x.dtype)
