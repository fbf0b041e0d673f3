"""The score of the harness itself: which wrong providers its checks catch, by which check, after how many examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.corpus import known_cases
from minimax_m2.harness.judge import expected, judge, repeat
from minimax_m2.harness.model_checks import FAILURES
from minimax_m2.harness.museum import WHOLES, Exhibit, load
from minimax_m2.harness.mutation import Mutant
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.relation import Standing, given_by, placed, relate, relations_of
from minimax_m2.harness.sampling import sampled, small_first
from minimax_m2.harness.verdict import Outcome, Verdict

MUSEUM, HELD_OUT, GENERIC, KERNELS = "museum", "held out", "generic", "kernels"
RELATED = 4
"""Cases a relation is tried on, where it applies."""
COMPARED = 8
"""Cases on which an engine's own tolerance is tried."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What became of one wrong provider.

    checks    those that its first wrong example failed: ``output:test``, an outcome, a relation; none: it survived
    examples  how many were judged until then
    expected  what an exhibit says should catch it
    accepted  of ``noticed`` wrong outputs, how many the engine's own tolerance would have let pass; None: not known
    equal     the compiler makes the same of it as of what is right: there is nothing to catch
    """

    name: str
    subject: str
    group: str
    checks: tuple[str, ...]
    examples: int
    seconds: float
    expected: str = ""
    accepted: int | None = None
    noticed: int = 0
    equal: bool = False

    @property
    def survived(self) -> bool:
        return not self.checks and not self.equal

    @property
    def as_expected(self) -> bool:
        return self.expected in self.checks


def score_museum(
    exhibits: Iterable[Exhibit], *, cases: int, progress: Progress = lambda text, share: None
) -> Iterator[Kill]:
    """Judge every exhibit on the first ``cases`` sampled cases of its op, and by relations."""
    hung = sorted(exhibits, key=lambda exhibit: exhibit.subject)
    for position, exhibit in enumerate(hung):
        progress(f"museum: {exhibit.name}", position / len(hung))
        start, group = time.perf_counter(), HELD_OUT if exhibit.held_out else MUSEUM
        if exhibit.subject in WHOLES:
            failures = FAILURES[exhibit.subject](getattr(load(exhibit.path), exhibit.offers))
            checks, examples = tuple(check for check, _ in failures), 1
            leniency: tuple[int | None, int] = (None, 0)
        else:
            op = find_op(exhibit.subject)
            checks, examples = first_kill(op, partial(loaded, exhibit), cases)
            seconds = time.perf_counter() - start
            leniency = accepted(exhibit, op, COMPARED)
            start = time.perf_counter() - seconds
        yield Kill(
            name=exhibit.name, subject=exhibit.subject, group=group, checks=checks, examples=examples,
            seconds=time.perf_counter() - start, expected=exhibit.check, accepted=leniency[0], noticed=leniency[1],
        )  # fmt: skip


def score_mutants(
    mutants: Iterable[Mutant], *, cases: int, progress: Progress = lambda text, share: None
) -> Iterator[Kill]:
    """Judge every generic mutant."""
    made = list(mutants)
    for position, mutant in enumerate(made):
        progress(f"generic: {mutant.name}", position / len(made))
        start = time.perf_counter()
        checks, examples = first_kill(mutant.op, mutant.provider, cases)
        yield Kill(
            name=mutant.name, subject=mutant.op.name, group=GENERIC, checks=checks, examples=examples,
            seconds=time.perf_counter() - start,
        )  # fmt: skip


def loaded(exhibit: Exhibit) -> Provider:
    """An exhibit that has not been called yet."""
    return from_object(load(exhibit.path), name=exhibit.name)


def first_kill(op: Op, make: Callable[[], Provider], cases: int) -> tuple[tuple[str, ...], int]:
    """The checks that a provider's first wrong example fails, and how many examples that took."""
    examples = 0
    for examples, checks in enumerate(_examined(op, make, cases), 1):
        if checks:
            return checks, examples
    return (), examples


def _examined(op: Op, make: Callable[[], Provider], cases: int) -> Iterator[tuple[str, ...]]:
    """What conformance asks, then what a run does: a provider that keeps something of its first call meets both."""
    drawn, provider = sampled(op, cases), make()
    ordered = small_first(op, drawn)
    for case in ordered:
        yield from _judged(case, provider)
    for case in ordered[:RELATED]:
        yield () if repeat(case, provider) else ("a second call",)
    for relation in relations_of(op.name):
        findings = (relate(relation, op, case, provider) for case in ordered)
        telling = (found for found in findings if found.standing in (Standing.HOLDS, Standing.BROKEN))
        for _, found in zip(range(RELATED), telling, strict=False):
            yield (relation.name,) if found.standing is Standing.BROKEN else ()
    fresh = make()
    # A run judges what somebody once failed before what it draws.
    for case in (*known_cases().get(op.name, ()), *drawn):
        yield from _judged(case, fresh)


def _judged(case: Case, provider: Provider) -> Iterator[tuple[str, ...]]:
    verdict = judge(case, provider)
    if verdict.outcome is not Outcome.UNSUPPORTED:
        yield fired(verdict)


def fired(verdict: Verdict) -> tuple[str, ...]:
    """Names of the checks that a verdict says failed."""
    if verdict.passed:
        return ()
    tests = {f"{c.output}:{test}" for c in verdict.comparisons for test, share in c.tests.items() if not share <= 1}
    outcome = set() if verdict.outcome is Outcome.WRONG else {verdict.outcome.value}
    return tuple(sorted(tests | outcome))


def accepted(exhibit: Exhibit, op: Op, cases: int) -> tuple[int | None, int]:
    """Of the wrong outputs among ``cases`` bfloat16 cases, how many the engine's tolerance accepts, and how many there
    are. Only shapes and dtypes that are right get that far."""
    if exhibit.tolerance is None:
        return None, 0
    provider, passed, noticed = loaded(exhibit), 0, 0
    narrow = [case for case in sampled(op, 4 * cases) if case.get("dtype", "bfloat16") == "bfloat16"]
    for case in narrow[:cases]:
        verdict = judge(case, provider)
        if verdict.outcome not in (Outcome.WRONG, Outcome.NOT_A_NUMBER):
            continue
        right, _ = expected(op, case, {})
        outputs = given_by(provider, op, placed(op.inputs(case, Bits(case)), provider))
        noticed += 1
        passed += all(_close(a, b, exhibit.tolerance) for a, b in zip(outputs, right.perfect(), strict=True))
    return passed, noticed


def _close(actual: Tensor, expected: Tensor, tolerance: tuple[float, float]) -> bool:
    """Whether a constant tolerance accepts an output; integers must be equal."""
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    a, b = actual.double(), expected.double()
    absolute, relative = tolerance
    return bool((((a - b).abs() <= absolute + relative * b.abs()) | (a.isnan() & b.isnan())).all())


def rate(kills: Iterable[Kill]) -> float:
    """The share that was caught of what can be, 1 where there was nothing to catch."""
    found = [kill for kill in kills if not kill.equal]
    return sum(not kill.survived for kill in found) / len(found) if found else 1.0
