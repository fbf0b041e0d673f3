"""What happened when a provider met a case: an outcome with evidence, never a bool."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import Comparison, Mismatch


class Outcome(Enum):
    """The ways a judged call can end."""

    PASS = "pass"
    WRONG = "wrong"
    RAISED = "raised"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"
    WRONG_SHAPE = "wrong shape"
    WRONG_DTYPE = "wrong dtype"
    WRONG_LAYOUT = "wrong layout"
    ALIASED = "aliased"
    OUTSIDE = "outside its memory"
    OUT_OF_MEMORY = "out of memory"
    NOT_A_NUMBER = "not a number"
    WROTE_INPUT = "wrote its input"
    IMPOSSIBLE = "impossible"
    VACUOUS = "vacuous"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judged call.

    utilisation  largest test statistic over its limit: 1 is the edge of the budget, above is wrong
    evidence     sentences for a person: element, both values, budget
    bits         hash of the outputs of the first call, empty where they were not compared
    due          kinds of corruption that some case of the op must let apply; ``applied`` those that this one did
    """

    outcome: Outcome
    op: str
    case: Case
    provider: str
    device: str
    variant: str
    evidence: tuple[str, ...] = ()
    utilisation: float = float("nan")
    comparisons: tuple[Comparison, ...] = field(default=())
    bits: str = ""
    due: frozenset[str] = frozenset()
    applied: frozenset[str] = frozenset()

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASS

    @property
    def cell(self) -> str:
        return f"{self.op}/{self.device}/{self.provider}" + (f"/{self.variant}" if self.variant else "")

    def explain(self, provider_option: str = "", replay: str = "") -> str:
        """The message of a failed check: cell, case, evidence, and the command that replays it, ``replay`` if given."""
        lines = [f"{self.cell}  case {self.case}: {self.outcome.value}", *(f"  {line}" for line in self.evidence)]
        lines.append(f"  replay: {replay or self.replay(provider_option)}")
        return "\n".join(lines)

    def replay(self, provider_option: str = "") -> str:
        """The command that judges this case again."""
        option = f" --provider {provider_option}" if provider_option else f" --with {self.provider}"
        variant = f" --variant {self.variant}" if self.variant else ""
        return f"m2check repro '{self.case.json}'{option}{variant}"


def describe(found: Comparison) -> str:
    """One failed comparison in words."""
    if found.notes:
        return f"{found.output}: {'; '.join(found.notes)}"
    failed = {name: share for name, share in found.tests.items() if share > 1}
    worst: Mismatch | None = found.worst
    if "element" in failed and worst is not None:
        error = abs(worst.actual - worst.expected)
        times = f"{failed['element']:.3g} x budget" if worst.limit > 0 else "must be equal"
        return (
            f"{found.output} at {list(worst.index)}: actual {worst.actual:.9g}, expected {worst.expected:.9g}, "
            f"error {error:.3g}, budget {worst.limit:.3g}, {times}"
        )
    name, share = max(failed.items(), key=lambda item: item[1])
    what = {
        "mean": "the mean square error of all elements",
        "row": "the mean square error of one row",
        "column": "the mean square error of one column",
        "gain": "the error's projection on the reference (a wrong scale)",
    }.get(name, name)
    return f"{found.output}: {what} is {share:.3g} x its limit (mean z^2 {found.mean_z2:.3g})"
