"""Whole models: a right one is nearer to the reference than to any defect, each defect is told by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from minimax_m2.harness.model_verdict import ModelJudge, defective, model_judge
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import torch_compile
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.providers.transformers_ops import transformers_ops
from minimax_m2.harness.timed_models import DRAWS, PHASES, TableSteps, cost_of, model_case, timed_model
from minimax_m2.harness.verdict import Outcome, Verdict

# Two sequences, and a length that no page divides.
SETTING: dict[str, int | str] = {"B": 2, "S": 19}
phases = pytest.mark.parametrize("phase", PHASES)
# A compiler takes a minute for a model.
BUILDERS = [ours, plain, transformers_ops, pytest.param(torch_compile.provider, marks=pytest.mark.nightly)]
EXPERTS = {"transformers": "eager", "torch-compile": "grouped_mm"}


@lru_cache
def judge_of(phase: str) -> ModelJudge:
    return model_judge(model_case("tiny-m2", phase, SETTING))


def verdict(phase: str, ops: object) -> Verdict:
    judge = judge_of(phase)
    steps = TableSteps(judge.case, ops)
    return judge.judge([steps.step(draw) for draw in range(DRAWS)], plain(), "")


@phases
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_timed_model_is_right(phase: str, build: Callable[[], Provider]) -> None:
    judge, provider = judge_of(phase), build()
    timed = timed_model(provider, judge.case.json, EXPERTS.get(provider.name, provider.variants[-1]))
    assert timed.start() == phase
    assert timed.sample(1) > 0
    found = judge.judge([timed.outputs(draw)[0] for draw in range(DRAWS)], provider, "")
    assert found.passed, found.evidence


@pytest.mark.parametrize("name, ops", list(defective()), ids=lambda value: value if isinstance(value, str) else "")
def test_each_defect_is_found_and_named(name: str, ops: object) -> None:
    found = verdict("decode", ops)
    assert found.outcome is Outcome.WRONG
    assert found.evidence[0].endswith(name)


def test_logits_of_another_shape_or_without_a_value_are_wrong() -> None:
    judge = judge_of("decode")
    right = list(judge.expected)
    assert judge.judge(right, plain(), "").utilisation == 0
    assert judge.judge([x[:1] for x in right], plain(), "").outcome is Outcome.WRONG_SHAPE
    assert judge.judge([x * torch.nan for x in right], plain(), "").outcome is Outcome.NOT_A_NUMBER
    assert judge.judge([x * 0 for x in right], plain(), "").outcome is Outcome.WRONG


@phases
def test_a_step_leaves_the_cache_as_it_found_it(phase: str) -> None:
    steps = TableSteps(judge_of(phase).case, None)
    first = [steps.step(draw).clone() for draw in (0, 1, 2)]
    assert [torch.equal(steps.step(draw), logits) for draw, logits in enumerate(first)] == [True] * 3


@pytest.mark.parametrize(
    "model, phase, setting, told",
    [
        ("m3", "decode", {}, "model 'm3' is unknown; use one of tiny-m2, m2-layer"),
        ("tiny-m2", "train", {}, "no shape 'train'; it has decode, prefill"),
        ("tiny-m2", "decode", {"T": 1}, "no case field 'T'; it has B, S, seed"),
        ("tiny-m2", "decode", {"S": 0}, "B=1 and S=0"),
    ],
)
def test_what_is_no_case_of_a_model_is_refused(model: str, phase: str, setting: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_case(model, phase, dict(setting))


def test_a_prefill_reads_more_weights_and_multiplies_more_than_a_decode() -> None:
    decode, prefill = (cost_of(model_case("m2-layer", phase, {})) for phase in PHASES)
    # One token takes 8 of 32 experts, 64 tokens all of them, each token the same products.
    assert 3 < prefill.bytes / decode.bytes < 4
    assert 50 < prefill.flops / decode.flops < 64
