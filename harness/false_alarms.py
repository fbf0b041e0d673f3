"""How often the budget calls a correct kernel wrong, with the bound that so many cases give.

Each is right, and no two round alike: plain torch in float32, in float64, and with its sums and ties the other way
round; with the roundings of the contracts that engines have; our kernels on every instruction set; and transformers.
They are held on every op's sampled cases, over dtypes, scales and regimes. A case counts once, however many of them it
alarms.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Expectation, Outputs, emulated, expectation
from minimax_m2.harness.op import GENERAL_CHOICES, Op, all_ops, find_op
from minimax_m2.harness.provenance import commit
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.backwards import backwards
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain, wide
from minimax_m2.harness.relation import given_by, placed
from minimax_m2.harness.sampling import sampled

CONTRACTS = "contracts"
"""The reference in float32 that rounds as an engine does: no provider, for its rounding hangs on the case."""
CONFIDENCE = 0.95
# Draws of a line: who is cut off loses no more.
SLICE = 500
# What a case costs: of an op that is not here 20 to 60 ms for all implementations together.
SHARES = {
    "attention": 1 / 4, "experts": 1 / 4, "gated_delta_rule": 1 / 8, "gdn_update": 1 / 8, "qk_norm_rope": 1 / 2,
    "qk_norm_rope_cache": 1 / 2, "rope": 1 / 4,
}  # fmt: skip

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of one op's cases.

    calls   judged calls of all implementations
    cases   cases that at least one of them took
    wrong   cases on which at least one was called wrong
    alarms  implementation, case, output and tests over their limit
    worst   the largest share of a limit
    """

    op: str
    implementations: tuple[str, ...]
    calls: int
    cases: int
    wrong: int
    alarms: tuple[str, ...]
    worst: float

    @property
    def below(self) -> float:
        """The rate of wrong verdicts is below this, at 95 %."""
        return upper_bound(self.wrong, self.cases)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Tally:
        """The tally that a line of JSON holds; what stands there beside it is left out. Raises KeyError for a gap."""
        kept = {field.name: row[field.name] for field in fields(cls)}
        return cls(**kept | {"implementations": tuple(row["implementations"]), "alarms": tuple(row["alarms"])})

    def line(self, start: int, stop: int) -> str:
        """A line of a record: which draws were held, and the commit that was judged."""
        return json.dumps({**asdict(self), "below": self.below, "start": start, "stop": stop, "commit": commit()})


def read(path: Path) -> list[Tally]:
    """The tallies of a record, in the order of the ops; draws that were held again count as they were last.

    An op may have a line for each slice of its draws. Raises ValueError where one is missing between two others.
    """
    slices: dict[str, dict[int, tuple[int, Tally]]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        slices.setdefault(line["op"], {})[line["start"]] = line["stop"], Tally.of(line)
    return [_joined(slices[op]) for op in all_ops() if op in slices]


def _joined(slices: dict[int, tuple[int, Tally]]) -> Tally:
    """One tally of slices by where they start."""
    known, reached = [slices[start] for start in sorted(slices)], 0
    for start, (stop, told) in zip(sorted(slices), known, strict=True):
        if start != reached:
            raise ValueError(f"{told.op}: draws {reached} to {start} are in no line, or in two")
        reached = stop
    every = [told for _, told in known]
    return Tally(
        op=every[0].op, implementations=tuple(dict.fromkeys(name for told in every for name in told.implementations)),
        calls=sum(t.calls for t in every), cases=sum(t.cases for t in every), wrong=sum(t.wrong for t in every),
        alarms=tuple(alarm for told in every for alarm in told.alarms), worst=max(told.worst for told in every),
    )  # fmt: skip


def table(tallies: Iterable[Tally]) -> str:
    """The tallies as Markdown."""
    head = "| op | cases | calls | called wrong | below |\n|---|---|---|---|---|"
    rows = (f"| {t.op} | {t.cases:,} | {t.calls:,} | {t.wrong} | {t.below:.1e} |" for t in tallies)
    return "\n".join([head, *rows])


def upper_bound(alarms: int, cases: int, confidence: float = CONFIDENCE) -> float:
    """Clopper and Pearson's one-sided bound: the rate at which so few alarms have a probability of 1 - confidence.

    For no alarm it is 1 - (1 - confidence)^(1 / cases), nearly 3 / cases at 95 %.
    """
    if not 0 <= alarms <= cases:
        raise ValueError(f"alarms={alarms} is outside 0..{cases}, the number of cases")
    if alarms == cases:
        return 1.0
    low, high = alarms / cases, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        logs = (
            math.lgamma(cases + 1) - math.lgamma(i + 1) - math.lgamma(cases - i + 1)
            + i * math.log(middle) + (cases - i) * math.log1p(-middle)
            for i in range(alarms + 1)
        )  # fmt: skip
        # At 1 nothing is left of the logarithm's argument, but bisection never gets there.
        low, high = (middle, high) if sum(map(math.exp, logs)) > 1 - confidence else (low, middle)
    return high


def transformers() -> Provider:
    """The installed transformers, which rounds where no other provider here does; ImportError where there is none."""
    from minimax_m2.harness.providers.transformers_ops import transformers_ops

    return transformers_ops()


def implementations() -> list[Provider]:
    """Everything here that is right, but for the contracts that engines have."""
    found = [plain(), wide(), backwards(), ours()]
    return [*found, transformers()] if find_spec("transformers") is not None else found


def tallies(op_names: Iterable[str], count: int, *, progress: Progress = lambda text, share: None) -> Iterator[Tally]:
    """Tally every op on its share of ``count`` cases, at least one."""
    providers, names = implementations(), list(op_names)
    for position, name in enumerate(names):
        progress(f"right: {name}", position / len(names))
        yield tally(name, providers, share(name, count))


def share(op_name: str, count: int) -> int:
    """How many of ``count`` cases an op takes, at least one."""
    return max(1, round(count * SHARES.get(op_name, 1)))


def tally(op_name: str, providers: list[Provider], count: int, *, start: int = 0, contracts: bool = True) -> Tally:
    """Hold what is right on the sampled cases ``start .. start + count``; variants and contracts take turns."""
    op = find_op(op_name)
    offering = [provider for provider in providers if provider.offers(op_name)]
    names = [provider.name for provider in offering] + ([CONTRACTS] if contracts and legal(op) else [])
    drawn, told, worst = sampled(op, count, start=start), list[str](), 0.0
    held, wrong, made = set[Case](), set[Case](), 0
    for position, case in enumerate(drawn):
        shown = [_shown(case, provider, position) for provider in offering if provider.refuses(op, case) is None]
        if CONTRACTS in names:
            shown.append(_emulated(case, position))
        for found in shown:
            held.add(case)
            made += 1
            for alarm, share in found:
                worst = max(worst, share)
                told += [alarm] if alarm else []
                wrong |= {case} if alarm else set()
    return Tally(
        op=op_name, implementations=tuple(names), calls=made, cases=len(held), wrong=len(wrong), alarms=tuple(told),
        worst=worst,
    )  # fmt: skip


def legal(op: Op) -> list[tuple[str, Any]]:
    """Contract fields of an op with a value that an engine has and the default is not."""
    return [(name, value) for name, values in op.choices.items() if name not in GENERAL_CHOICES for value in values]


def _shown(case: Case, provider: Provider, position: int) -> Iterator[tuple[str, float]]:
    """Each output's alarm, empty where there is none, and its largest share of a limit."""
    op = find_op(case.op)
    variants = provider.variants_of(op.name)
    variant = variants[position % len(variants)]
    right = _right(case, _text(op, case, provider.contract.get(op.name, {})))
    with provider.enter(variant):
        outputs = given_by(provider, op, placed(op.inputs(case, Bits(case)), provider))
    yield from _alarms(right, outputs, f"{provider.name} {variant} {case.json}")


def _emulated(case: Case, position: int) -> Iterator[tuple[str, float]]:
    op = find_op(case.op)
    choices = legal(op)
    field, value = choices[position % len(choices)]
    text = _text(op, case, {field: value})
    outputs = emulated(op, case, json.loads(text), torch.float32)
    yield from _alarms(_right(case, text), outputs, f"{CONTRACTS} {field}={value} {case.json}")


def _alarms(right: Expectation, outputs: Outputs, named: str) -> Iterator[tuple[str, float]]:
    dtypes = {n: o.dtype for n, o in zip(right.dtypes, outputs, strict=True)}
    if dtypes != right.dtypes:
        yield f"{named}: returns {dtypes}", 0.0
        return
    for c in right.judge(outputs):
        yield "" if c.passed else f"{named}: {c.output} {c.tests}", c.utilisation


def _text(op: Op, case: Case, declared: Any) -> str:
    return json.dumps(op.full_contract(case, declared))


@lru_cache(maxsize=8)
def _right(case: Case, contract: str) -> Expectation:
    """All implementations of one contract follow each other on a case."""
    return expectation(find_op(case.op), case, json.loads(contract))


def main(arguments: Sequence[str] | None = None) -> None:
    """Tally ops, a line of a record for each slice of an op's draws."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("count", type=int, help="draws of each op")
    parser.add_argument("ops", nargs="*", help="all, unless some are named")
    parser.add_argument("--start", type=int, default=0, help="the first draw: goes on where a run was cut off")
    asked = parser.parse_args(arguments)
    for name in asked.ops or all_ops():
        for start in range(asked.start, asked.start + asked.count, SLICE):
            stop = min(start + SLICE, asked.start + asked.count)
            sys.stdout.write(f"{tally(name, implementations(), stop - start, start=start).line(start, stop)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
