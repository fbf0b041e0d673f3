"""Logits are those of the chosen rows and of the true vocabulary, in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome


def plain(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int, step: str = "") -> Tensor:
    """The logits in float32 torch; ``step`` names one thing to do wrong."""
    columns = slice(-vocab_size, None) if step == "drops the padding at the wrong end" else slice(vocab_size)
    head = weight if step == "keeps the padding" else weight[columns]
    if rows is not None:
        before = rows.clamp(min=1) - 1
        x = x[before if step == "takes the row before" else rows]
    logits = x.float() @ head.float().mT
    return logits.bfloat16().float() if step == "returns bf16 logits" else logits


def doing(step: str) -> Callable[..., Tensor]:
    def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
        return plain(x, weight, rows=rows, vocab_size=vocab_size, step=step)

    return lm_head


def test_a_correct_float32_head_passes() -> None:
    assert all(v.passed for v in try_on("lm_head", doing(""), cases=200))


def test_logits_in_the_dtype_of_the_model_need_a_contract_that_says_so() -> None:
    def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
        return plain(x, weight, rows=rows, vocab_size=vocab_size).to(x.dtype).float()

    assert not all(v.passed for v in try_on("lm_head", lm_head))
    assert all(v.passed for v in try_on("lm_head", lm_head, contract={"out": "dtype"}))


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("keeps the padding", Outcome.WRONG_SHAPE),
        ("drops the padding at the wrong end", Outcome.NOT_A_NUMBER),
        ("takes the row before", Outcome.WRONG),
        ("returns bf16 logits", Outcome.WRONG),
    ],
)
def test_a_wrong_head_is_told(step: str, outcome: Outcome) -> None:
    last = try_on("lm_head", doing(step))[-1]
    assert last.outcome is outcome
    assert "m2check repro" in last.explain()
