"""A trained model reads held-out text as transformers reads it, and every defect that matters shows in nats."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.language import (
    eval_windows,
    language_score,
    provider_model,
    provider_table,
    reference_logits,
    score_model,
)
from minimax_m2.harness.provider import Provider
from minimax_m2.reference import rms_norm, swiglu
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import Checkpoint

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny-m2"
CHECKPOINT = Checkpoint(TINY)
# transformers 5.23.0 in float32, by rotary_dim; the data's README has the same figures.
FIGURES = {32: 1.805957335289173, 64: 4.044926887919052}
# The float64 reference on all 23 windows of the text.
WHOLE_TEXT = 2.299578221287094


def float32_slack(logits: Tensor) -> float:
    """Bound how far a cross-entropy moves when the logits are computed in float32.

    Each of the 4 layers sums 4 times over at most 384 terms on the way to a logit: sqrt(4 * 4 * 384) = 78 roundings of
    2^-24 relative to the largest logit. log-sum-exp moves no further than the logits, and the true token's logit once
    more.
    """
    return 2 * 78 * 2.0**-24 * float(logits.abs().max())


@pytest.mark.parametrize("rotary_dim", FIGURES)
def test_the_reference_reads_as_transformers_does(rotary_dim: int) -> None:
    config = dataclasses.replace(CHECKPOINT.config, rotary_dim=rotary_dim)
    logits = MiniMaxM2(config, CHECKPOINT.load(torch.float64))(eval_windows(TINY))
    score = language_score(logits, logits, eval_windows(TINY))
    assert abs(score.cross_entropy - FIGURES[rotary_dim]) < float32_slack(logits)
    assert (score.agreement, score.divergence, score.tokens) == (1.0, 0.0, 4 * 511)


@pytest.mark.parametrize("rotary_dim", FIGURES)
def test_transformers_gives_the_figures_of_the_readme(rotary_dim: int) -> None:
    pytest.importorskip("transformers", reason="transformers is not here: pip install -e .[transformers]")
    from minimax_m2.harness.providers.transformers import TransformersModel

    config = dataclasses.replace(CHECKPOINT.config, rotary_dim=rotary_dim)
    logits = TransformersModel(config, CHECKPOINT.load(torch.float32), dtype=torch.float32)(eval_windows(TINY))
    score = language_score(logits, logits, eval_windows(TINY))
    assert abs(score.cross_entropy - FIGURES[rotary_dim]) < float32_slack(logits)
    assert f"rotary_dim {rotary_dim}: {FIGURES[rotary_dim]}" in (TINY / "README.md").read_text()


@pytest.mark.nightly
def test_the_whole_text_gives_the_figure_of_the_readme() -> None:
    logits = reference_logits(TINY, windows=23)
    score = language_score(logits, logits, eval_windows(TINY, windows=23))
    # derived: float64 repeats its own sum of 11,753 terms, in whatever order, to 12 digits
    assert score.cross_entropy == pytest.approx(WHOLE_TEXT, rel=1e-12)
    assert f"whole text, rotary_dim 32: {WHOLE_TEXT}" in (TINY / "README.md").read_text()


def test_the_shipped_ids_are_the_tokenised_text() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not here: pip install -e .[transformers]")
    text = (TINY / "eval.txt").read_text(encoding="utf-8")
    ids = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids
    assert json.loads((TINY / "eval_ids.json").read_text()) == ids


def test_kept_quantised_weights_are_the_dequantised_model() -> None:
    ids = eval_windows(TINY, windows=1, length=64)
    kept = MiniMaxM2.from_pretrained(TINY, keep_quantized=True)(ids)
    assert torch.equal(kept, MiniMaxM2.from_pretrained(TINY)(ids))


def test_sixteen_bits_cost_little_and_not_nothing() -> None:
    model = MiniMaxM2.from_pretrained(TINY, dtype=torch.bfloat16)
    score = score_model(model, TINY, windows=1, length=128)
    # Ten bf16 roundings a layer, 2^-9 each, move a logit by at most sqrt(40) * 2^-9 of the largest;
    # the divergence is half the variance of that.
    largest = float(reference_logits(TINY, windows=1, length=128).abs().max())
    assert 0 < score.divergence < 0.5 * (math.sqrt(40) * 2.0**-9 * largest) ** 2
    assert score.agreement > 0.9


def test_progress_hears_of_every_layer() -> None:
    heard: list[tuple[int, int, str]] = []
    MiniMaxM2.from_pretrained(TINY, progress=lambda done, total, what: heard.append((done, total, what)))
    assert heard == [(done, 4, "layers loaded") for done in (1, 2, 3, 4)]


def test_scores_of_equal_logits_are_known() -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    flat = torch.zeros(1, 3, 4, dtype=torch.float64)
    sure = torch.tensor([math.log(5.0), 0.0, 0.0, 0.0], dtype=torch.float64).expand(1, 3, 4)
    score = language_score(flat, sure, ids)
    # p = (5, 1, 1, 1) / 8 against uniform: KL = sum p ln(4 p); the first of equal logits is the likeliest.
    divergence = 5 / 8 * math.log(20 / 8) + 3 / 8 * math.log(4 / 8)
    # Twelve float64 operations on numbers of order 1.
    assert abs(score.divergence - divergence) < 12 * 2.0**-52
    assert abs(score.cross_entropy - math.log(4)) < 12 * 2.0**-52
    assert score.agreement == 1.0


def test_nan_logits_give_no_plausible_score() -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert math.isnan(language_score(torch.full((1, 3, 4), torch.nan), torch.zeros(1, 3, 4).double(), ids).divergence)


def test_a_provider_fills_the_table_with_what_it_offers() -> None:
    functions: dict[str, Callable[..., Any]] = {"rms_norm": rms_norm.rms_norm, "swiglu": swiglu.swiglu}
    provider = Provider(name="two", device="cpu", functions=functions.get, contract={"rope": {"cos_sin": "bfloat16"}})
    sources = provider_table(provider).sources
    assert sources["rms_norm"] == "two"
    assert sources["experts"] == "composed of swiglu"
    assert sources["qk_norm_rope_cache"] == "composed of qk_norm_rope, kv_cache"
    score = score_model(provider_model(provider, TINY), TINY, windows=1, length=64)
    assert score.divergence < math.inf


def test_more_windows_than_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"windows=24 x length=512 need 12288 tokens; there are 12000"):
        eval_windows(TINY, windows=24)


def test_the_reference_is_computed_once() -> None:
    assert reference_logits(TINY, windows=1, length=8) is reference_logits(TINY, windows=1, length=8)
