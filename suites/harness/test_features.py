"""The matrix of fused paths tells proven, failing, not here and not yet built apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minimax_m2.harness import features
from minimax_m2.harness.features import FEATURES, Standing, survey
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.plain import plain


def standing(provider: Provider, feature: str, device: str = "cpu") -> Standing:
    chosen = [f for f in FEATURES if f.name == feature]
    (found,) = survey([device], lambda _: provider, features=chosen, count=2)
    return found.standing


def only(**functions: Any) -> Provider:
    return Provider(name="mine", device="cpu", functions=functions.get)


def test_every_path_names_known_ops_and_fields() -> None:
    needs = [(op, fields) for f in FEATURES for op, fields in f.needs if op != "capture"]
    cases = [find_op(op).case(**fields) for op, fields in needs]
    assert len(cases) == len(needs)


def test_a_right_kernel_is_proven() -> None:
    assert standing(plain(), "bias-corrected routing") is Standing.PROVEN


def test_a_kernel_that_returns_int32_ids_only_fails_the_int64_path() -> None:
    right = plain().functions("routing")

    def routing(*args: Any, **keywords: Any) -> Any:
        assert right is not None
        weights, ids = right(*args, **keywords)
        return weights, ids.to(torch.int32)

    others = {name: plain().functions(name) for name in ("experts", "pack_experts")}
    failing = only(routing=routing, **others)
    assert standing(failing, "int64 top-k ids") is Standing.FAILING


def test_an_op_without_a_kernel_is_not_yet_built() -> None:
    assert standing(only(routing=plain().functions("routing")), "FP8 experts") is Standing.NOT_YET_BUILT


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_absent_is_not_here() -> None:
    assert standing(plain(), "bias-corrected routing", "gpu") is Standing.NOT_HERE


def test_a_path_without_cases_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "sampled", lambda op, count: [])
    assert standing(plain(), "bias-corrected routing") is Standing.FAILING


def test_a_capture_without_a_checkpoint_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "tiny_m2", lambda: None)
    assert standing(plain(), "EAGLE3 capture") is Standing.NOT_HERE


SPLIT = [feature.name for feature in FEATURES if feature.tp * feature.dp > 1]


@pytest.mark.parametrize("feature", SPLIT)
def test_a_right_kernel_is_proven_over_ranks(feature: str) -> None:
    assert standing(plain(), feature) is Standing.PROVEN


def test_a_kernel_that_counts_replicas_fails_beyond_the_key_value_heads() -> None:
    right = plain().functions("qk_sum_squares")

    def qk_sum_squares(*args: Any, counted_kv_heads: int | None = None, **keywords: Any) -> Any:
        assert right is not None
        return right(*args, **keywords)

    others = {name: plain().functions(name) for name in ("qk_norm_rope", "attention")}
    counting = only(qk_sum_squares=qk_sum_squares, **others)
    assert standing(counting, "TP16, KV heads replicated") is Standing.FAILING


def test_a_kernel_that_takes_no_expert_for_the_first_fails_over_groups_of_experts() -> None:
    right = plain().functions("experts")

    def experts(x: Any, packed: Any, weights: Any, ids: Any, **keywords: Any) -> Any:
        assert right is not None
        return right(x, packed, weights, ids.clamp(min=0), **keywords)

    wrong = only(experts=experts, pack_experts=plain().functions("pack_experts"))
    assert standing(wrong, "DP3 x TP2, an idle group") is Standing.FAILING


def test_a_finding_says_over_how_many_ranks() -> None:
    chosen = [feature for feature in FEATURES if feature.name.startswith("DP3")]
    (found,) = survey(["cpu"], lambda _: plain(), features=chosen, count=1)
    assert (found.tp, found.dp, found.ep) == (2, 3, 3)
