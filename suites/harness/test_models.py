"""Whole models: scores by provider, a failure is a row, and captures are the streams they claim to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from minimax_m2.harness.capture import capture_mismatch
from minimax_m2.harness.models import score_models, tiny_m2
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.reference.model import MiniMaxM2

FOLDER = tiny_m2()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="suites/data/tiny-m2 is part of the checkout only")


def offering(**functions: Any) -> Provider:
    return Provider(name="mine", device="cpu", functions=functions.get)


def test_kernels_read_text_as_the_reference_does() -> None:
    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([ours()], FOLDER, windows=1, length=128)}
    plain, fast = rows["reference bfloat16"].score, rows["ours bfloat16"].score
    assert plain is not None
    assert fast is not None
    # Both round to bfloat16 at least where the other does; neither may stray several times further.
    assert fast.divergence <= 4 * plain.divergence


def test_a_model_that_raises_is_a_row_and_the_others_go_on() -> None:
    def rms_norm(*args: Any, **keywords: Any) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([offering(rms_norm=rms_norm)], FOLDER, windows=1, length=16)}
    assert rows["mine bfloat16"].score is None
    assert "no such instruction" in rows["mine bfloat16"].reason
    assert rows["reference bfloat16"].score is not None


def test_logits_that_are_no_numbers_are_a_failure() -> None:
    def lm_head(x: torch.Tensor, weight: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return torch.full((len(x), keywords["vocab_size"]), torch.nan)

    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([offering(lm_head=lm_head)], FOLDER, windows=1, length=16)}
    assert rows["mine bfloat16"].score is None
    assert "not finite" in rows["mine bfloat16"].reason


def test_transformers_is_scored_as_the_model_that_it_ships() -> None:
    pytest.importorskip("transformers")
    from minimax_m2.harness.providers.transformers_ops import pack_experts, transformers_ops

    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([transformers_ops()], FOLDER, windows=1, length=16)}
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
