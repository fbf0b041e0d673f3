"""Choose among the code paths of our GPU ops by measurement: a path is judged before its time counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.graph_timing import replayed, sets_for
from minimax_m2.harness.judge import build, call, judge
from minimax_m2.harness.op import Op
from minimax_m2.harness.ops.experts import M2_WIDTH
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import gpu_choices
from minimax_m2.harness.timing import actions
from minimax_m2.harness.verdict import Outcome, Verdict

# Another path than an op's own must be so much faster: less is noise, and a choice would change from day to day.
WORTH = 1.03

# 32 experts stand for M2's 256: a path depends on the slots that one has, and 453 MB are beyond any cache.
SHAPES: dict[str, tuple[dict[str, Field], ...]] = {
    "experts": tuple(
        {**M2_WIDTH, "E": 32, "K": 8, "active": 32, "quant": "weights", "T": T}
        for T in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    ),
    "fp8_linear": tuple(
        {"N": N, "H": H, "T": T} for N, H in ((8192, 3072), (3072, 6144)) for T in (1, 4, 16, 32, 64, 128, 256, 1024)
    ),
}
# What else a path is judged on beside the case that is timed, of the same bucket: loads and kinds of ids that break
# kernels, at widths that the reference computes at once.
VARIED: dict[str, tuple[dict[str, Field], ...]] = {
    "experts": tuple(
        {"H": 384, "I": 256, "load": load, "ids": ids, "dtype": dtype}
        for load, ids, dtype in (
            ("hot", "int64", "bfloat16"), ("holes", "packed", "float16"), ("none", "int32", "float32"),
        )
    ),
    "fp8_linear": ({"regime": "heavy"}, {"dtype": "float16", "regime": "tiny"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One path in one bucket: what it was judged, and its time where it was right."""

    op: str
    bucket: str
    path: str
    wrong: str
    us: float | None


def cases_of(op: Op, fields: Mapping[str, Field]) -> list[Case]:
    """The case to time, then those to judge as well."""
    return [op.case(**fields), *(op.case(**{**fields, **other, "seed": 1}) for other in VARIED[op.name])]


def measured(
    op: Op, cases: Sequence[Case], provider: Provider, *, judged: Callable[[Case, Provider], Verdict] = judge,
    timed: Callable[[Op, Case, Provider], float] | None = None,
) -> list[Candidate]:  # fmt: skip
    """Judge every path that can run the first case on all cases, and time on the first what is right.

    An op's own choice comes first. Raises ValueError for cases of more than one bucket, or an op without a choice.
    """
    seen = [offered(op, case, provider) for case in cases]
    (bucket, able) = seen[0]
    if len({found for found, _ in seen}) > 1:
        raise ValueError(f"cases of {op.name} lie in buckets {sorted({found for found, _ in seen})}; expected one")
    time = timed or graph_us
    found = []
    for path in able:
        with gpu_choices().forced(op.name, path):
            verdicts = [judged(case, provider) for case, (_, paths) in zip(cases, seen, strict=True) if path in paths]
            # A case too small for its own noise tells nothing of a path, as long as another one does.
            told = [verdict for verdict in verdicts if verdict.outcome is not Outcome.UNSUPPORTED] or verdicts
            wrong = next((verdict.explain() for verdict in told if not verdict.passed), "")
            us = None if wrong else time(op, cases[0], provider)
        found.append(Candidate(op=op.name, bucket=bucket, path=path, wrong=wrong, us=us))
    return found


def offered(op: Op, case: Case, provider: Provider) -> tuple[str, tuple[str, ...]]:
    """The bucket of a case and the paths that can run it, as the op itself asks for a choice."""
    function = provider.function(op.name)
    with gpu_choices().watched() as asked:
        call(op, function, build(op, case, provider))
    own = [(bucket, able) for name, bucket, able in asked if name == op.name]
    if not own:
        raise ValueError(f"{op.name} has one path only; these have more: {', '.join(SHAPES)}")
    return own[0]


def graph_us(op: Op, case: Case, provider: Provider) -> float:
    """Median microseconds of a call in a replayed graph whose calls find nothing in the cache."""
    calls: list[Callable[[], Any]] = [
        actions(op, case, provider)[0][1] for _ in range(sets_for(op.cost(case).bytes))
    ]  # fmt: skip
    return statistics.median(replayed(calls, budget=0.1)) * 1e6


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The op's own choice unless another right path is faster by more than noise; None where no path is right."""
    right = [c for c in candidates if c.us is not None]
    if not right:
        return None
    fastest = min(right, key=lambda c: c.us or 0.0)
    own = candidates[0]
    if own.us is not None and fastest.us is not None and own.us <= fastest.us * WORTH:
        return own
    return fastest
