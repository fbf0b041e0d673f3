"""Lock-step: every step is fed what the reference gave before it, and judged alone against its own budget.

An error does not travel, so what is wrong is found where it is: one pass, and the cells of layer by step can be ranked
by how much of their budget they use. Routing is judged by scores: a flip between experts whose scores tie is right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.devices import torch_device
from minimax_m2.harness.drift.calls import Call, described, only_active
from minimax_m2.harness.drift.candidate import Candidate, Place
from minimax_m2.harness.drift.explain import explained
from minimax_m2.harness.expectation import Expectation, Outputs, expectation
from minimax_m2.harness.judge import ALPHA_OF_A_CALL, malformed
from minimax_m2.harness.op import Declared, Pack
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.shrink import given
from minimax_m2.harness.verdict import describe

PASS, WRONG, BROKEN, ABSENT = "pass", "wrong", "raised", "reference's own"
"""What a cell can be: within its budget, beyond it, without a result, or not the candidate's step at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One step of one layer, judged.

    used         largest test statistic over its limit; above 1 is wrong. Infinite where nothing was returned
    test         which output and test that is
    mean_z2      mean square error over its expectation: 1 is a kernel that rounds as its contract says
    evidence     for a person: element, both values, budget
    explanation  what the wrong output equals, where that was found
    """

    layer: int
    step: str
    op: str
    phase: str
    outcome: str
    used: float = 0.0
    test: str = ""
    mean_z2: float | None = None
    evidence: tuple[str, ...] = ()
    explanation: str = ""

    @property
    def place(self) -> Place:
        return self.layer, self.step

    @property
    def is_wrong(self) -> bool:
        return self.outcome in (WRONG, BROKEN)


class Judge:
    """Judges calls on candidates, and remembers what is right for each call: many candidates may meet the same ones."""

    def __init__(self) -> None:
        self._right: dict[tuple[int, str], tuple[Call, Expectation]] = {}
        self._packed: dict[tuple[int, str, str], tuple[Pack, Any]] = {}

    def forget(self) -> None:
        """Drop what is known: a large model's layers do not fit into memory together."""
        self._right.clear()
        self._packed.clear()

    def cell(self, call: Call, candidate: Candidate) -> Cell:
        """Run the candidate's step on the call's arguments and say how much of the budget its error is."""
        provider, small = candidate.at(call.place), only_active(call)
        cell = partial(Cell, layer=call.layer, step=call.step, op=call.op.name, phase=call.phase)
        function, case = candidate.function(call.op.name, call.place), described(call)
        if function is None:
            return cell(outcome=ABSENT)
        if (refusal := provider.refuses(call.op, case)) is not None:
            return cell(outcome=ABSENT, evidence=(refusal,))
        contract = call.op.full_contract(case, candidate.declared(call.op.name, call.place))
        right = self._expected(call, small, case, contract)
        try:
            with provider.enter(candidate.variant_of(provider)):
                outputs = self.outputs(call, provider, function)
        except (Exception, SystemExit) as error:
            return cell(outcome=BROKEN, used=math.inf, test="call", evidence=(f"{type(error).__name__}: {error}",))
        return _judged(call, right, outputs)

    def found(self, call: Call, declared: Declared, outputs: Outputs) -> Cell:
        """Judge outputs that somebody has already computed, under the contract that he declares."""
        case = described(call)
        contract = call.op.full_contract(case, declared)
        return _judged(call, self._expected(call, only_active(call), case, contract), outputs)

    def reason(self, call: Call, declared: Declared, outputs: Outputs) -> str:
        """What such outputs equal, where they are wrong; empty where nothing can be said."""
        case = described(call)
        contract = call.op.full_contract(case, declared)
        right = self._expected(call, only_active(call), case, contract)
        return "" if malformed(right, outputs) else explained(call, contract, right, outputs)

    def explanation(self, call: Call, candidate: Candidate) -> str:
        """What the outputs of a wrong call equal; empty where there are none or nothing can be said."""
        provider, small = candidate.at(call.place), only_active(call)
        function, case = candidate.function(call.op.name, call.place), described(call)
        if function is None:
            return ""
        contract = call.op.full_contract(case, candidate.declared(call.op.name, call.place))
        right = self._expected(call, small, case, contract)
        try:
            with provider.enter(candidate.variant_of(provider)):
                outputs = self.outputs(call, provider, function)
        except (Exception, SystemExit):
            return ""
        return "" if malformed(right, outputs) else explained(call, contract, right, outputs)

    def _expected(self, call: Call, small: Call, case: Case, contract: Mapping[str, Any]) -> Expectation:
        """What a kernel that rounds where its contract says may return for a call."""
        key = (id(call), json.dumps(contract, sort_keys=True))
        if key not in self._right:
            # The call is kept beside it, so that no other can have its id.
            self._right[key] = (call, expectation(given(call.op, small.arguments), case, contract))
        return self._right[key][1]

    def outputs(self, call: Call, provider: Provider, function: Callable[..., Any]) -> Outputs:
        """Call a provider on its own copies of what it may write to; on the host."""
        arguments = {name: self._placed(call, name, value, provider) for name, value in call.arguments.items()}
        returned = call.op.bind(function, arguments)()
        found = outputs_of(call.op, returned, arguments)
        return tuple(value.detach().cpu() if isinstance(value, Tensor) else value for value in found)

    def _placed(self, call: Call, name: str, value: Any, provider: Provider) -> Any:
        device = torch_device(provider.device)
        if isinstance(value, Pack):
            return self._laid_out(call, value, provider)
        if isinstance(value, Tensor):
            return value.to(device, copy=name in call.op.mutates)
        return value

    def _laid_out(self, call: Call, pack: Pack, provider: Provider) -> Any:
        """Packed by the provider, once for as long as its layer is asked for."""
        key = (call.layer, call.step, provider.name)
        if key not in self._packed or self._packed[key][0] is not pack:
            function = provider.functions(pack.function)
            if function is None:
                raise ValueError(f"provider {provider.name!r} offers {call.op.name} but not {pack.function}")
            device = torch_device(provider.device)
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in pack.arguments.items()}
            self._packed[key] = (pack, function(**moved))
        return self._packed[key][1]


def _judged(call: Call, right: Expectation, outputs: Outputs) -> Cell:
    cell = partial(Cell, layer=call.layer, step=call.step, op=call.op.name, phase=call.phase)
    if (fault := malformed(right, outputs)) is not None:
        return cell(outcome=BROKEN, used=math.inf, test="layout", evidence=(fault[1],))
    found = right.judge(outputs, alpha=ALPHA_OF_A_CALL)
    worst = max(found, key=lambda c: c.utilisation)
    z2 = [c.mean_z2 for c in found if math.isfinite(c.mean_z2)]
    wrong = [c for c in found if not c.passed]
    return cell(
        outcome=WRONG if wrong else PASS,
        used=worst.utilisation,
        test=f"{worst.output}:{strictest(worst)}",
        mean_z2=max(z2) if z2 else None,
        evidence=tuple(describe(c) for c in wrong),
    )


def strictest(found: Comparison) -> str:
    """The name of the test that is nearest to its limit, or furthest beyond it."""
    return max(found.tests, key=lambda name: _number(found.tests[name]), default="")


def _number(share: float) -> float:
    return math.inf if math.isnan(share) else share


def ranked(cells: Iterable[Cell]) -> list[Cell]:
    """The worst of each place, worst first; places of which nothing is the candidate's are left out."""
    worst: dict[Place, Cell] = {}
    for cell in cells:
        if cell.outcome == ABSENT:
            continue
        if cell.place not in worst or cell.used > worst[cell.place].used:
            worst[cell.place] = cell
    return sorted(worst.values(), key=lambda cell: (-cell.used, cell.layer))
