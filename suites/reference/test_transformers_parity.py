"""The reference and transformers are two readings of one model: they agree on logits over drawn configurations."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from minimax_m2.harness.providers import transformers
from minimax_m2.harness.providers.transformers import OracleRefused, TransformersModel
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import ModelWeights

pytest.importorskip("transformers", reason="transformers is not here: pip install -e .[transformers]")

# Both figures are relative to the largest logit. Two float64 readings differ in the order of sums of at most a few
# hundred terms, in some thirty sums on the way to a logit: sqrt(300 * 30) roundings of 1.1e-16 make 1e-14. The
# figure leaves four decades for streams that a norm or the softmax stretches, and is six below float32.
LIFTED = 1e-10
# The stock module rounds to float32 (2^-24 = 6e-8) in four norms and one softmax a layer, the sigmoid and the angles:
# sqrt(3 * 7) * 6e-8 = 3e-7 for three layers.
STOCK = 1e-6
# A narrow model may stretch such roundings. One that moves this far when nothing but its weights is rounded to float32
# cannot be judged through float32 steps: of 1,500 drawn models the stock module was never more than 6.1 times as far.
STEADY = STOCK / 8
# A gap in biased scores below which float32's sigmoid may choose another expert, which no tolerance on logits covers.
NO_TIE = 1e-5


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A model and a text, small enough to run in milliseconds."""

    config: MiniMaxM2Config
    seed: int
    bias_scale: float
    tokens: int

    @property
    def weights(self) -> ModelWeights:
        return random_weights(self.config, seed=self.seed, bias_scale=self.bias_scale)

    @property
    def ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.config.vocab_size, (self.tokens,), generator=generator)


@st.composite
def models(draw: st.DrawFn) -> Drawn:
    """Draw head counts of any parity, every even rotary width, 1 to all experts, and a bias that is never zero."""
    kv_heads = draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 24))
    experts = draw(st.integers(1, 9))
    config = MiniMaxM2Config(
        vocab_size=draw(st.integers(17, 97)),
        hidden_size=draw(st.integers(16, 72)),
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * draw(st.integers(1, 5)),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=2 * draw(st.integers(1, head_dim // 2)),
        rope_theta=draw(st.sampled_from([5e6, 1e4])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
    )
    assume(config.q_width != config.hidden_size)
    return Drawn(
        config=config,
        seed=draw(st.integers(0, 2**31)),
        bias_scale=draw(st.sampled_from([1.0, 0.05, 8.0])),
        tokens=draw(st.integers(1, 24)),
    )


def logits_and_gap(drawn: Drawn) -> tuple[Tensor, float]:
    """Run the reference; return its logits and the smallest gap between the last chosen and the first unchosen."""
    weights, gaps = drawn.weights, [1.0]

    def watch(step: str, layer: int, x: Tensor) -> None:
        if step == "post_attention_norm" and drawn.config.num_experts_per_tok < drawn.config.num_local_experts:
            gate, bias = weights.layers[layer].gate, weights.layers[layer].e_score_correction_bias
            assert bias is not None, "random_weights never leaves the bias out"
            scores = (torch.sigmoid(x @ gate.mT) + bias).sort(-1, descending=True).values
            last = drawn.config.num_experts_per_tok
            gaps.append(float((scores[:, last - 1] - scores[:, last]).min()))

    return MiniMaxM2(drawn.config, weights)(drawn.ids, tap=watch), min(gaps)


def in_float32(weights: ModelWeights) -> ModelWeights:
    """Round every weight to float32 and keep it in float64."""

    def each(part: Any) -> dict[str, Any]:
        tensors = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return {name: x.float().double() for name, x in tensors.items() if isinstance(x, Tensor)}

    layers = [dataclasses.replace(layer, **each(layer)) for layer in weights.layers]
    return dataclasses.replace(weights, layers=layers, **each(weights))


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected logit."""
    return float((actual - expected).abs().max() / expected.abs().max())


@given(models())
def test_the_reference_is_transformers_lifted_to_float64(drawn: Drawn) -> None:
    logits, gap = logits_and_gap(drawn)
    assume(gap > NO_TIE)
    assert difference(logits, TransformersModel(drawn.config, drawn.weights, lifted=True)(drawn.ids)) < LIFTED


@given(models())
def test_the_reference_is_stock_transformers_up_to_its_float32_steps(drawn: Drawn) -> None:
    logits, gap = logits_and_gap(drawn)
    assume(gap > NO_TIE)
    assume(difference(MiniMaxM2(drawn.config, in_float32(drawn.weights))(drawn.ids), logits) < STEADY)
    assert difference(logits, TransformersModel(drawn.config, drawn.weights)(drawn.ids)) < STOCK


@given(models(), st.lists(st.integers(0, 8), max_size=5), st.sampled_from([1, 3, 16]))
def test_chunks_and_decode_end_where_transformers_does_in_one_pass(
    drawn: Drawn, chunks: list[int], page_size: int
) -> None:
    assume(logits_and_gap(drawn)[1] > NO_TIE)
    model = MiniMaxM2(drawn.config, drawn.weights)
    cache = model.new_cache(tokens=[drawn.tokens], page_size=page_size)
    lengths = step_lengths(chunks, drawn.tokens)
    steps = [model.prefill({0: chunk}, cache) for chunk in drawn.ids.split(lengths)]
    ends = torch.tensor(lengths).cumsum(0)[torch.tensor(lengths) > 0] - 1
    expected = TransformersModel(drawn.config, drawn.weights, lifted=True)(drawn.ids)
    assert difference(torch.cat(steps), expected[ends]) < LIFTED


def step_lengths(chunks: list[int], tokens: int) -> list[int]:
    """Cut ``tokens`` into the chunks, as far as they reach, and single tokens after them."""
    cut: list[int] = []
    for chunk in chunks:
        cut.append(min(chunk, tokens - sum(cut)))
    return cut + [1] * (tokens - sum(cut))


EXAMPLE = Drawn(
    config=MiniMaxM2Config(
        vocab_size=53,
        hidden_size=40,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        rotary_dim=6,
        num_local_experts=7,
        num_experts_per_tok=2,
    ),
    seed=5,
    bias_scale=1.0,
    tokens=20,
)


def unbiased(weights: ModelWeights) -> ModelWeights:
    layers = [dataclasses.replace(layer, e_score_correction_bias=None) for layer in weights.layers]
    return dataclasses.replace(weights, layers=layers)


WRONG = {
    "bias ignored": lambda: MiniMaxM2(EXAMPLE.config, unbiased(EXAMPLE.weights)),
    "whole head rotated": lambda: MiniMaxM2(dataclasses.replace(EXAMPLE.config, rotary_dim=16), EXAMPLE.weights),
    "one expert fewer": lambda: MiniMaxM2(dataclasses.replace(EXAMPLE.config, num_experts_per_tok=1), EXAMPLE.weights),
    "eps tenfold": lambda: MiniMaxM2(dataclasses.replace(EXAMPLE.config, rms_norm_eps=1e-5), EXAMPLE.weights),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_model_is_not_transformers(defect: str) -> None:
    assert (
        difference(WRONG[defect]()(EXAMPLE.ids), TransformersModel(EXAMPLE.config, EXAMPLE.weights)(EXAMPLE.ids))
        > STOCK
    )


def test_a_transformers_that_rotates_whole_heads_is_refused() -> None:
    whole = SimpleNamespace(MiniMaxM2RotaryEmbedding=lambda config: lambda x, positions: (x[..., :32], x[..., :32]))
    with pytest.raises(OracleRefused, match="rotates 32 channels of a head although rotary_dim=8"):
        transformers.refuse_full_rotation(whole)  # type: ignore[arg-type]


def test_a_change_in_the_number_of_float32_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "LIFTED_PLACES", 12)
    with pytest.raises(OracleRefused, match="writes float32 in 13 places of its MiniMax-M2, 12 are known"):
        transformers.lifted_module.__wrapped__()
