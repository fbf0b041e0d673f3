"""One model: any table of ops, any split of the tokens over steps, taps that only watch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference import add_rms_norm, linear, rms_norm, rope, router, router_gemm, routing, swiglu
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.table import op_table

CONFIG = MiniMaxM2Config(
    vocab_size=61,
    hidden_size=40,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=6,
    num_local_experts=7,
    num_experts_per_tok=3,
)
WEIGHTS = random_weights(CONFIG, seed=3)


def ids_of(*shape: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(11))


def model(**choices: Any) -> MiniMaxM2:
    return MiniMaxM2(CONFIG, WEIGHTS, **choices)


def drift(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of float64 rounding at the scale of the logits."""
    scale = torch.finfo(torch.float64).eps * float(expected.abs().max())
    return float((actual - expected).abs().max()) / scale


# Two orders of the same float64 sums differ by about sqrt(n) roundings for sums of n terms; the longest here has
# n = 2 * 48 terms and there are 8 such steps on the way through three layers: sqrt(96) * 8 < 100. Each norm and the
# softmax may stretch what reaches them by its own condition, taken as 10 for all of them together.
ANOTHER_ORDER = 1000.0


def test_a_batch_is_its_sequences() -> None:
    ids = ids_of(3, 9)
    together = model()(ids)
    assert together.shape == (3, 9, CONFIG.vocab_size)
    assert drift(together, torch.stack([model()(row) for row in ids])) < ANOTHER_ORDER


def test_logits_are_float64_and_differ_from_token_to_token() -> None:
    logits = model()(ids_of(5))
    assert logits.dtype == torch.float64
    assert logits.unique(dim=0).shape[0] == 5


def test_nothing_later_changes_an_earlier_token() -> None:
    ids = ids_of(12)
    assert drift(model()(ids)[:7], model()(ids[:7])) < ANOTHER_ORDER


@pytest.mark.parametrize("chunks", [(12,), (5, 7), (1, 10, 1), (4, 0, 8), (1,) * 12], ids=str)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_chunked_prefill_ends_where_one_pass_does(chunks: Sequence[int], page_size: int) -> None:
    ids, m = ids_of(12), model()
    cache = m.new_cache(tokens=[12], page_size=page_size)
    last = [m.prefill({0: chunk}, cache) for chunk in ids.split(list(chunks))][-1]
    assert drift(last[0], m(ids)[-1]) < ANOTHER_ORDER


def test_sequences_of_mixed_lengths_prefill_and_decode_together() -> None:
    m, rows = model(), ids_of(3, 20)
    cache = m.new_cache(tokens=[20, 20, 20], page_size=4)
    m.prefill({0: rows[0, :9]}, cache)
    m.prefill({1: rows[1, :17], 0: rows[0, 9:10]}, cache)
    mixed = m.prefill({0: rows[0, 10:11], 2: rows[2, :5], 1: rows[1, 17:19]}, cache)
    decoded = m.decode(torch.stack([rows[1, 19], rows[2, 5]]), cache, sequences=[1, 2])
    expected = [m(rows[0, :11])[-1], m(rows[2, :5])[-1], m(rows[1, :19])[-1]]
    assert drift(mixed, torch.stack(expected)) < ANOTHER_ORDER
    assert drift(decoded, torch.stack([m(rows[1])[-1], m(rows[2, :6])[-1]])) < ANOTHER_ORDER


def test_released_pages_serve_the_next_sequence() -> None:
    m, rows = model(), ids_of(2, 8)
    cache = m.new_cache(tokens=[8], page_size=4)
    m.prefill({0: rows[0]}, cache)
    with pytest.raises(ValueError, match="2 pages of 4 tokens are needed, 0 are free"):
        m.prefill({1: rows[1]}, cache)
    cache.release(0)
    assert drift(m.prefill({1: rows[1]}, cache)[0], m(rows[1])[-1]) < ANOTHER_ORDER


def test_a_truncated_sequence_goes_on_as_if_the_rest_had_never_been() -> None:
    m, rows = model(), ids_of(2, 9)
    cache = m.new_cache(tokens=[9], page_size=4)
    m.prefill({0: rows[0]}, cache)
    cache.truncate(0, 3)
    # One page is kept, two are free for the six tokens that follow.
    found = m.prefill({0: rows[1, 3:]}, cache)[0]
    assert drift(found, m(torch.cat([rows[0, :3], rows[1, 3:]]))[-1]) < ANOTHER_ORDER
    with pytest.raises(ValueError, match=r"tokens=10 is outside 0\.\.9"):
        cache.truncate(0, 10)


def test_no_tokens_give_no_logits() -> None:
    m = model()
    assert m(ids_of(0)).shape == (0, CONFIG.vocab_size)
    assert m(ids_of(0, 4)).shape == (0, 4, CONFIG.vocab_size)
    assert m.prefill({}, m.new_cache(tokens=[])).shape == (0, CONFIG.vocab_size)


def test_generation_is_the_argmax_of_the_whole_text() -> None:
    m, prompts = model(), [ids_of(4), ids_of(9)[4:]]
    continuations = m.generate(prompts, max_new_tokens=6, page_size=4)
    texts = [torch.cat([prompt, torch.tensor(new)]) for prompt, new in zip(prompts, continuations, strict=True)]
    logits = [m(text[:-1])[len(prompt) - 1 :] for text, prompt in zip(texts, prompts, strict=True)]
    assert [row.argmax(-1).tolist() for row in logits] == continuations


def test_generation_stops_at_an_end_token() -> None:
    m = model()
    free = m.generate([ids_of(4)], max_new_tokens=6)[0]
    stopped = m.generate([ids_of(4), ids_of(3)], max_new_tokens=6, eos_token_ids=[free[2]])
    assert stopped[0] == free[: free.index(free[2]) + 1]


def test_capture_returns_the_stream_at_the_entry_of_layers() -> None:
    ids, seen = ids_of(5), {}
    m = model()
    logits, states = m(ids, capture=(0, 2, 3), tap=lambda step, layer, x: seen.update({(step, layer): x}))
    assert sorted(states) == [0, 2, 3]
    assert torch.equal(states[0], WEIGHTS.embed_tokens[ids])
    assert torch.equal(states[2], seen["middle", 1] + seen["experts", 1])
    assert torch.equal(states[3], seen["middle", 2] + seen["experts", 2])
    final = rms_norm.rms_norm(states[3], WEIGHTS.norm, eps=CONFIG.rms_norm_eps)
    assert torch.equal(logits, final @ WEIGHTS.lm_head.mT)


def test_taps_stand_at_every_step_in_order_and_change_nothing() -> None:
    ids, seen = ids_of(5), []
    assert torch.equal(model()(ids, tap=lambda step, layer, x: seen.append((step, layer))), model()(ids))
    steps = ["entry", "input_norm", "qkv", "query", "attention", "o_proj", "middle", "post_attention_norm"]
    steps += ["routing_weights", "routing_ids", "experts"]
    layers = [(step, layer) for layer in range(3) for step in steps]
    assert seen == [("embedding", -1), *layers, ("final_norm", 3), ("logits", 3)]


FINER: dict[str, dict[str, Any]] = {
    "add_rms_norm": {"rms_norm": rms_norm.rms_norm},
    "qk_norm_rope": {"rope": rope.rope},
    "router": {"router_gemm": router_gemm.router_gemm, "routing": routing.routing},
    "experts": {"swiglu": swiglu.swiglu},
    "lm_head": {"linear": linear.linear},
}


@pytest.mark.parametrize("coarse", FINER)
def test_a_coarse_step_is_the_composition_of_overridden_finer_ones(coarse: str) -> None:
    calls: list[str] = []

    def watched(op: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append(op.__name__)
            return op(*arguments, **keywords)

        return call

    table = op_table({name: watched(op) for name, op in FINER[coarse].items()}, name="watched")
    ids = ids_of(6)
    assert drift(model(ops=table)(ids), model()(ids)) < ANOTHER_ORDER
    assert table.sources[coarse].startswith("composed of")
    assert set(calls) == set(FINER[coarse])


def test_the_coarsest_override_wins() -> None:
    def fails(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the finer op ran although the coarse one is offered")

    table = op_table({"router": router.router, "routing": fails, "add_rms_norm": add_rms_norm.add_rms_norm})
    assert torch.equal(model(ops=table)(ids_of(6)), model()(ids_of(6)))
    assert table.sources["router"] == "provider"
    assert table.sources["attention"] == "reference"


def test_one_layer_may_have_a_table_of_its_own() -> None:
    def biased(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        weights, ids = router.router(*arguments, **keywords)
        return weights, (ids + 1) % CONFIG.num_local_experts

    ids, here, there = ids_of(6), {}, {}
    model()(ids, tap=lambda step, layer, x: here.update({(step, layer): x}))
    model(layer_ops={1: {"router": biased}})(ids, tap=lambda step, layer, x: there.update({(step, layer): x}))
    differing = [key for key in here if not torch.equal(here[key], there[key])]
    assert differing[0] == ("routing_ids", 1)
    assert ("experts", 0) not in differing


def test_a_misspelt_step_is_refused() -> None:
    with pytest.raises(ValueError, match="'rmsnorm' is no step of the model; steps: add_rms_norm, attention"):
        op_table({"rmsnorm": rms_norm.rms_norm})


def test_packing_belongs_to_the_op_that_reads_it() -> None:
    table = op_table({"pack_experts": lambda *weights: "theirs"})
    assert table.sources["pack_experts"] == "reference"


def test_sixteen_bit_models_keep_the_router_in_float32() -> None:
    seen: dict[str, Tensor] = {}
    m = MiniMaxM2(CONFIG, random_weights(CONFIG, seed=3, dtype=torch.bfloat16))
    logits = m(ids_of(6), tap=lambda step, layer, x: seen.update({step: x}))
    assert logits.dtype == torch.float32
    assert {step: x.dtype for step, x in seen.items() if x.dtype != torch.bfloat16} == {
        "routing_weights": torch.float32,
        "routing_ids": torch.int32,
        "logits": torch.float32,
    }


REFUSED: dict[str, tuple[Any, str]] = {
    "id": (lambda m: m(torch.tensor([3, 61])), r"ids span 3\.\.61; expected 0\.\.60"),
    "shape": (lambda m: m(ids_of(1, 2, 3)), r"shape \[1, 2, 3\]; expected \[T\] or \[B, T\]"),
    "capture": (lambda m: m(ids_of(2), capture=[4]), r"capture=4 is outside 0\.\.3"),
    "length": (
        lambda m: MiniMaxM2(dataclasses.replace(CONFIG, max_position_embeddings=4), WEIGHTS)(ids_of(5)),
        "a sequence has 5 tokens; max_position_embeddings=4",
    ),
    "layers": (lambda m: MiniMaxM2(dataclasses.replace(CONFIG, num_hidden_layers=4), WEIGHTS), "3 layers are given"),
    "layer_ops": (lambda m: model(layer_ops={3: None}), r"layer_ops names layer 3; layers are 0\.\.2"),
    "empty prompt": (lambda m: m.generate([ids_of(0)], max_new_tokens=1), "a prompt is empty"),
    "decode twice": (
        lambda m: m.decode(ids_of(2), m.new_cache(tokens=[4]), sequences=[0, 0]),
        r"for sequences \[0, 0\]; give one id to each, once",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_use_is_refused(case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        act(model())
