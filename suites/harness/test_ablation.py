"""A model with one fused op in its parts is timed beside the whole one, and both are proven."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from minimax_m2.harness.ablation import FUSIONS, ablated, without
from minimax_m2.harness.model_bench import Plan
from minimax_m2.harness.paired import PairRecord
from minimax_m2.harness.providers.ours import ours
from minimax_m2.reference.config import MiniMaxM2Config

CONFIG = MiniMaxM2Config(
    vocab_size=96, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=32, rotary_dim=16, num_local_experts=32, num_experts_per_tok=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("fusion", "step", "parts"),
    [
        ("add_rms_norm", "add_rms_norm", "composed of rms_norm"),
        ("qk_norm_rope_cache", "qk_norm_rope_cache", "composed of qk_norm_rope, kv_cache"),
        ("qk_norm_rope", "qk_norm_rope", "composed of rms_norm, rope"),
        ("router", "router", "composed of router_gemm, routing"),
    ],
)
def test_a_table_without_a_fusion_has_its_parts_from_the_same_provider(fusion: str, step: str, parts: str) -> None:
    assert without(ours("cpu"), fusion).sources[step] == parts
    assert set(without(ours("cpu"), fusion).sources.values()) == {"ours", parts} | (
        {"composed of qk_norm_rope, kv_cache"} if fusion == "qk_norm_rope" else set()
    )


def test_every_fusion_is_compared_in_both_phases_and_both_sides_are_proven() -> None:
    found = list(ablated(Plan(layers=2), CONFIG, device="cpu", batches=(2,), seconds=0.0))
    assert [(pair.setting["fusion"], pair.a.case["phase"]) for pair in found] == [
        (fusion, phase) for fusion in FUSIONS for phase in ("decode", "prefill")
    ]
    assert all(pair.a.passed and pair.b.passed and pair.low <= pair.ratio <= pair.high for pair in found)
    assert found[0].b.variant == "without add_rms_norm"
    assert PairRecord.from_json(found[0].json) == found[0]


def test_a_part_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ours("cpu")

    def functions(name: str) -> Any:
        found = right.functions(name)
        return (lambda *a, **kw: 0 * found(*a, **kw)) if name == "router_gemm" and found is not None else found

    wrong = dataclasses.replace(right, functions=functions)
    monkeypatch.setattr("minimax_m2.harness.ablation.ours", lambda device: wrong)
    monkeypatch.setattr("minimax_m2.harness.ablation.FUSIONS", {"router": ("router",)})
    (decode, _) = ablated(Plan(layers=2), CONFIG, device="cpu", batches=(1,), seconds=0.0)
    assert decode.a.passed
    assert decode.b.outcome == "wrong"
