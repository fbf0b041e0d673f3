"""Try one function as an op: what tests of right and wrong kernels are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.verdict import Outcome, Verdict


def try_on(
    op: str,
    function: Callable[..., Any],
    *,
    cases: int | Iterable[Case] = 40,
    contract: Mapping[str, Any] | None = None,
    **packs: Callable[..., Any],
) -> list[Verdict]:
    """Judge ``function`` as ``op`` on the first ``cases`` sampled cases, or on given ones, until one does not pass.

    ``packs`` are the functions that lay out packed arguments (``pack_experts=...``).
    """
    provider = from_object(
        SimpleNamespace(**{op: function}, **packs, contract={op: dict(contract or {})}), name=function.__name__
    )
    chosen = sampled(find_op(op), cases) if isinstance(cases, int) else cases
    verdicts: list[Verdict] = []
    for case in chosen:
        verdict = judge(case, provider)
        if verdict.outcome is not Outcome.UNSUPPORTED:
            verdicts.append(verdict)
        if verdicts and not verdicts[-1].passed:
            break
    if not verdicts:
        raise ValueError(f"cases={cases!r} of {op}: none could be judged under the contract {dict(contract or {})}")
    return verdicts
