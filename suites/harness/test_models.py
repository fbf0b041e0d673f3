"""Whole models: scores by provider, a failure is a row, and captures are the streams they claim to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.capture import capture_mismatch
from minimax_m2.harness.judge import judge
from minimax_m2.harness.language import LanguageScore
from minimax_m2.harness.models import ModelRecord, own_steps, read_models, score_models, tiny_m2
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record, read
from minimax_m2.harness.report import page
from minimax_m2.reference.model import MiniMaxM2

FOLDER = tiny_m2()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="suites/data/tiny-m2 is part of the checkout only")


def offering(**functions: Any) -> Provider:
    return Provider(name="mine", device="cpu", functions=functions.get)


def scored(provider: Provider) -> list[ModelRecord]:
    assert FOLDER is not None
    return list(score_models([provider], FOLDER, windows=1, length=16, run="now"))


def test_kernels_read_text_as_the_reference_does() -> None:
    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([ours()], FOLDER, windows=1, length=128, run="now")}
    plain, fast = rows["reference bfloat16"].score, rows["ours bfloat16"].score
    assert plain is not None
    assert fast is not None
    # Both round to bfloat16 at least where the other does; neither may stray several times further.
    assert fast.divergence <= 4 * plain.divergence


def test_a_model_that_raises_is_a_row_and_the_others_go_on() -> None:
    def rms_norm(*args: Any, **keywords: Any) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    rows = {row.provider: row for row in scored(offering(rms_norm=rms_norm))}
    assert rows["mine bfloat16"].score is None
    assert "no such instruction" in rows["mine bfloat16"].reason
    assert rows["reference bfloat16"].score is not None


def test_models_become_records_beside_those_of_cases(tmp_path: Path) -> None:
    score = LanguageScore(cross_entropy=1.8, agreement=0.99, divergence=1e-3, tokens=15)
    rows = [ModelRecord(run="now", provider="mine fp8", seconds=0.5, score=score, own=3, steps=11)]
    rows += [ModelRecord(run="now", provider="other", seconds=0.0, score=None, reason="RuntimeError: no")]
    case = Record.of(judge(find_op("swiglu").case(), plain()), run="now")
    path = tmp_path / "now.jsonl"
    path.write_text("".join(record.json + "\n" for record in (rows[0], case, rows[1])))
    assert read_models(path) == rows
    assert read(path) == [case]
    shown = page(read(path), absent=[], models=read_models(path))
    assert all(text in shown for text in ("3 of 11 steps", "99.0 %", "RuntimeError: no"))


def test_a_provider_of_a_few_ops_is_said_to_own_so_many_steps() -> None:
    own, steps = own_steps(offering(rms_norm=print, routing=print))
    # rms_norm, and what is made of it and of routing: add_rms_norm, qk_norm_rope_cache, router.
    assert (own, steps) == (4, 11)
    assert own_steps(ours()) == (11, 11)
    assert own_steps(offering(swiglu_quant=print)) == (0, 11)


def test_a_provider_of_no_step_has_no_model() -> None:
    rows = scored(offering(swiglu_quant=print))
    assert not [row for row in rows if "mine" in row.provider]


def test_logits_that_are_no_numbers_are_a_failure() -> None:
    def lm_head(x: torch.Tensor, weight: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return torch.full((len(x), keywords["vocab_size"]), torch.nan)

    rows = {row.provider: row for row in scored(offering(lm_head=lm_head))}
    assert rows["mine bfloat16"].score is None
    assert "not finite" in rows["mine bfloat16"].reason


def test_transformers_is_scored_as_the_model_that_it_ships() -> None:
    pytest.importorskip("transformers")
    from minimax_m2.harness.providers.transformers_ops import pack_experts, transformers_ops

    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([transformers_ops()], FOLDER, windows=1, length=16, run="now")}
    assert [name for name in rows if "transformers" in name] == ["transformers bfloat16"]
    assert all(row.score is not None for row in rows.values())
    with pytest.raises(ValueError, match="w13_scale"):
        pack_experts(torch.zeros(1, 4, 2), torch.zeros(1, 2, 2), w13_scale=torch.ones(1), w2_scale=torch.ones(1))


def test_captured_states_are_the_residual_stream_bit_for_bit() -> None:
    assert capture_mismatch(ours()) == ""


def test_a_capture_one_layer_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MiniMaxM2.__call__

    def late(self: MiniMaxM2, ids: torch.Tensor, *, capture: Any = None, tap: Any = None) -> Any:
        logits, states = right(self, ids, capture=capture, tap=tap)
        keys = sorted(states)
        return logits, {key: states[min(key + 1, keys[-1])] for key in keys}

    monkeypatch.setattr(MiniMaxM2, "__call__", late)
    assert "state 0 differs" in capture_mismatch(replace(ours(), name="late"))
