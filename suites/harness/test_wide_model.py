"""A drawn model is one model however it is cut, its bytes are counted, and a wrong step of it is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimax_m2.harness.model_bench import Plan, timed_plan
from minimax_m2.harness.model_tables import layer_table, model_table, proof_table
from minimax_m2.harness.model_verdict import DEFECTS
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.random_fp8 import random_fp8
from minimax_m2.harness.record import Record
from minimax_m2.harness.wide_model import bytes_of, drawn_bytes, judge_of, proof, wide_model
from minimax_m2.reference.communicator import Communicator, Single, Threads
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import BlockQuantized

# Two blocks of scales a width, so that the shares of two ranks are whole blocks as M2's are.
CONFIG = MiniMaxM2Config(
    vocab_size=96, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=32, rotary_dim=16, num_local_experts=6, num_experts_per_tok=2,
)  # fmt: skip
PHASES = ("decode", "layer")
PLAN = Plan(layers=2, loads=((2, 5),), prompts=((2, 5),), tokens=3)


def quantised(value: object) -> BlockQuantized:
    assert isinstance(value, BlockQuantized)
    return value


def test_every_rank_has_its_share_of_the_same_model() -> None:
    whole = random_fp8(CONFIG, seed=4)
    for rank in range(2):
        layout = Layout(tp=2, rank=rank)
        found, expected = random_fp8(CONFIG, seed=4, layout=layout), shard(whole, CONFIG, layout)
        for name in ("qkv_proj", "o_proj", "w13", "w2"):
            one, other = (quantised(getattr(each.layers[1], name)) for each in (found, expected))
            assert torch.equal(one.dequantized(torch.float32), other.dequantized(torch.float32))
        assert torch.equal(found.lm_head, expected.lm_head)
        assert torch.equal(found.embed_tokens, expected.embed_tokens)


def test_drawn_projections_keep_the_size_of_what_they_multiply() -> None:
    drawn = random_fp8(CONFIG, seed=4)
    y = torch.randn(64, 256) @ quantised(drawn.layers[0].qkv_proj).dequantized(torch.float32).mT
    # derived: gains of blocks between a half and three halves, and 64 x 384 samples
    assert 0.5 < float(y.std()) < 1.5


def test_bytes_are_those_of_weights_and_keys() -> None:
    size = bytes_of(random_fp8(CONFIG, seed=4), CONFIG)
    per_expert = 3 * 256 * 256 + 4 * 12
    projections = 256 * (8 + 2 + 2) * 32 + 8 * 32 * 256 + 4 * (2 * 3 + 2 * 2)
    norms = 2 * (256 + 256 + 8 * 32 + 2 * 32)
    assert size.expert == CONFIG.num_hidden_layers * per_expert
    assert size.dense == 2 * 96 * 256 + 2 * 256 + CONFIG.num_hidden_layers * (projections + norms + 4 * (6 * 256 + 6))
    assert size.keys == CONFIG.num_hidden_layers * 2 * 2 * 32 * 2
    assert size.of(active=1.5, cached=10) == size.dense + int(1.5 * size.expert) + 10 * size.keys


def outcomes(provider: Provider, ranks: int = 1) -> list[str]:
    """The verdicts on a prefill and a decode, every rank's."""

    def rank_main(voice: Communicator) -> list[str]:
        wide = wide_model(PLAN.case(ranks), CONFIG, provider, voice, "cpu")
        return [verdict.outcome.value for verdict in proof(wide, judge_of(wide), is_captured=False)]

    return [word for found in Threads(ranks).run(rank_main) for word in found]


@pytest.mark.parametrize("ranks", [1, 2])
def test_plain_torch_passes_the_proof(ranks: int) -> None:
    assert outcomes(plain(), ranks) == ["pass"] * 2 * ranks


@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "the routing bias is ignored"])
def test_a_model_with_a_defect_fails_the_proof(defect: str) -> None:
    step, spoil = DEFECTS[defect]
    right = plain()

    def functions(name: str) -> object:
        found = right.functions(name)
        return spoil(found) if name == step and found is not None else found

    wrong = dataclasses.replace(right, functions=functions)  # type: ignore[arg-type]
    assert "wrong" in outcomes(wrong)


def test_a_plan_is_proven_then_timed_and_its_table_says_so() -> None:
    found = list(timed_plan(PLAN, CONFIG, Single(), device="cpu"))
    assert [(record.kind, record.outcome) for record in found] == [
        ("model proof", "pass"), ("model proof", "pass"), ("model step", "pass"), ("model step", "pass")
    ]  # fmt: skip
    assert [Record.from_json(record.json) for record in found] == found
    decode, prefill = found[2].timing, found[3].timing
    assert decode is not None
    assert prefill is not None
    assert (decode.calls, decode.clock) == (3, "wall")
    assert decode.bytes > prefill.bytes // 3
    assert model_table(found, "decode").splitlines()[-1].startswith("| 2 | 1 |  | 2 | 5 | ")
    assert proof_table(found).count("| pass | relative error") == 2


def test_a_layer_is_what_deep_steps_take_beside_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # A step of three layers takes 5 s, one of the first two 3 s.
    monkeypatch.setattr(
        "minimax_m2.harness.continuation.Continuation.timed",
        lambda going, tokens: [2 * going.static.model.config.num_hidden_layers - 1] * tokens,
    )
    found = list(timed_plan(dataclasses.replace(PLAN, layers=3), CONFIG, Single(), device="cpu"))
    decode, layer = (next(r.timing for r in found if r.timing and r.case["phase"] == phase) for phase in PHASES)

    assert (decode.median_us, layer.median_us) == (5e6, 2e6)
    assert 0 < 3 * layer.bytes < decode.bytes
    assert layer_table(found).splitlines()[-1].startswith("| 3 | 1 |  | 2 | 5 | 2000000.0 | ")
    assert layer_table([record for record in found if record.case["phase"] != "layer"]) == ""


def test_what_does_not_fit_is_told_before_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimax_m2.harness.model_bench.available_bytes", lambda: 10**9)
    (found,) = timed_plan(PLAN, CONFIG, Single(), device="cpu")
    assert (found.outcome, found.timing) == ("unsupported", None)
    assert (
        "2 layers do not fit: 1.6 GB of weights, cache and workspace are needed, 1.0 GB are free" in found.evidence[0]
    )


def test_a_model_takes_no_more_than_is_said_before() -> None:
    whole = random_fp8(CONFIG, seed=4)
    held = bytes_of(whole, CONFIG).of(active=CONFIG.num_local_experts, cached=0) + whole.embed_tokens.nbytes
    assert held <= drawn_bytes(CONFIG, 1) <= 2 * held
    # The released model: 227.6 GB of layers, and the embedding and the head in bfloat16 and float32.
    assert drawn_bytes(MiniMaxM2Config(), 1) // 10**9 == 234


def test_a_wrong_model_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil = DEFECTS["attention adds nothing"][1]
    wrong = dataclasses.replace(
        plain(),
        functions=lambda name: spoil(plain().functions(name)) if name == "attention" else None,  # type: ignore[arg-type]
    )
    monkeypatch.setattr("minimax_m2.harness.model_bench.ours", lambda device: wrong)
    found = list(timed_plan(PLAN, CONFIG, Single(), device="cpu"))
    assert {record.outcome for record in found} == {"wrong"}
    assert {record.kind for record in found} == {"model proof"}
