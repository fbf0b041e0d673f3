"""Correct kernels raise no alarm: plain torch in float32, ours and transformers', on every op's sampled cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minimax_m2.harness.false_alarms import CASES, PROVIDERS, tally
from minimax_m2.harness.matrix import cells
from minimax_m2.harness.provider import Provider

# The conformance suite takes the first cases; the slice of every change lies behind a thousand.
SLICE, START = 60, 1000


def offered(op_name: str, make: Callable[[], Provider]) -> Provider:
    if make.__name__ == "transformers":
        pytest.importorskip("transformers")
    provider = make()
    if not cells([provider], [op_name]):
        pytest.skip(f"{provider.name} does not offer {op_name}")
    return provider


@pytest.mark.parametrize("make", PROVIDERS)
def test_a_correct_kernel_raises_no_alarm(op_name: str, make: Callable[[], Provider]) -> None:
    found = tally(op_name, offered(op_name, make), SLICE, START)
    assert found.cases > 0
    assert found.alarms == ()


@pytest.mark.nightly
@pytest.mark.parametrize("make", PROVIDERS)
def test_a_correct_kernel_raises_no_alarm_in_a_thousand_cases(op_name: str, make: Callable[[], Provider]) -> None:
    assert tally(op_name, offered(op_name, make), CASES).alarms == ()
