"""Correct kernels raise no alarm: plain torch in float32, ours and transformers', on every op's sampled cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minimax_m2.harness.expectation import expectation
from minimax_m2.harness.judge import calls
from minimax_m2.harness.matrix import cells
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.sampling import sampled

# The conformance suite takes the first cases; the slice of every change lies behind a thousand.
SLICE, START, NIGHTLY = 60, 1000, 1000


def alarms(op_name: str, provider: Provider, count: int, start: int = 0) -> list[str]:
    """What the budget finds wrong with a kernel that is right: every instruction set in turn, one a case."""
    op, found = find_op(op_name), []
    for i, case in enumerate(sampled(op, count, start=start)):
        if provider.refuses(op, case) is not None:
            continue
        right = expectation(op, case, op.full_contract(case, provider.contract.get(op_name, {})))
        for name, call in calls(op, case, provider, right):
            with provider.enter(provider.variants[i % len(provider.variants)]):
                outputs, _ = call()
            dtypes = {n: o.dtype for n, o in zip(right.dtypes, outputs, strict=True)}
            found += [f"{name} {case.json}: returns {dtypes}"] if dtypes != right.dtypes else []
            found += [f"{name} {case.json}: {c.output} {c.tests}" for c in right.judge(outputs) if not c.passed]
    return found


def transformers() -> Provider:
    """The installed transformers, which rounds where no other provider here does; skips where there is none."""
    pytest.importorskip("transformers")
    from minimax_m2.harness.providers.transformers_ops import transformers_ops

    return transformers_ops()


PROVIDERS = (plain, ours, transformers)


def offered(op_name: str, provider: Provider) -> Provider:
    if not cells([provider], [op_name]):
        pytest.skip(f"{provider.name} does not offer {op_name}")
    return provider


@pytest.mark.parametrize("make", PROVIDERS)
def test_a_correct_kernel_raises_no_alarm(op_name: str, make: Callable[[], Provider]) -> None:
    assert alarms(op_name, offered(op_name, make()), SLICE, START) == []


@pytest.mark.nightly
@pytest.mark.parametrize("make", PROVIDERS)
def test_a_correct_kernel_raises_no_alarm_in_a_thousand_cases(op_name: str, make: Callable[[], Provider]) -> None:
    assert alarms(op_name, offered(op_name, make()), NIGHTLY) == []
