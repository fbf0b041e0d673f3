"""How often the budget calls a correct kernel wrong: ``python -m minimax_m2.harness.false_alarms`` writes the record.

Plain torch in float32, our kernels and transformers' are held on every op's sampled cases, over dtypes, scales and
regimes. No alarm in n cases bounds the rate of alarms below 3/n, at a confidence of 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import expectation
from minimax_m2.harness.judge import calls
from minimax_m2.harness.matrix import cells
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import machine
from minimax_m2.harness.sampling import sampled

CASES = 1000


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of one op's cases: how many ran, what alarmed, and the largest share of a limit."""

    cases: int
    alarms: tuple[str, ...]
    utilisation: float


def tally(op_name: str, provider: Provider, count: int, start: int = 0) -> Tally:
    """Hold a kernel that is right on the sampled cases ``start .. start + count``, one variant a case in turn."""
    op, ran, alarms, utilisation = find_op(op_name), 0, list[str](), 0.0
    variants = [v for v in provider.variants if not provider.lacks(op_name, v)]
    for i, case in enumerate(sampled(op, count, start=start)):
        if provider.refuses(op, case) is not None:
            continue
        ran += 1
        for alarm, share in _held(case, provider, variants[i % len(variants)]):
            utilisation = max(utilisation, share)
            alarms += [alarm] if alarm else []
    return Tally(ran, tuple(alarms), utilisation)


def _held(case: Case, provider: Provider, variant: str) -> Iterator[tuple[str, float]]:
    """Each output's alarm, empty where there is none, and its largest share of a limit."""
    op = find_op(case.op)
    right = expectation(op, case, op.full_contract(case, provider.contract.get(op.name, {})))
    for name, call in calls(op, case, provider, right):
        with provider.enter(variant):
            outputs, _ = call()
        dtypes = {n: o.dtype for n, o in zip(right.dtypes, outputs, strict=True)}
        if dtypes != right.dtypes:
            yield f"{name} {variant} {case.json}: returns {dtypes}", 0.0
        for c in right.judge(outputs):
            yield "" if c.passed else f"{name} {variant} {case.json}: {c.output} {c.tests}", c.utilisation


def transformers() -> Provider:
    """The installed transformers, which rounds where no other provider here does; ImportError where there is none."""
    from minimax_m2.harness.providers.transformers_ops import transformers_ops

    return transformers_ops()


PROVIDERS = (plain, ours, transformers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count false alarms, op by op, into a file of JSON lines.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # What the file holds already is not run again, so that a run that was stopped goes on.
    lines = options.file.read_text().splitlines() if options.file.exists() else []
    done = {(line["op"], line["provider"]) for line in map(json.loads, lines)}
    for op_name in all_ops():
        for provider in (make() for make in PROVIDERS):
            if cells([provider], [op_name]) and (op_name, provider.name) not in done:
                found = tally(op_name, provider, options.cases)
                line = {
                    "op": op_name, "provider": provider.name, "drawn": options.cases, "cases": found.cases,
                    "alarms": list(found.alarms), "utilisation": found.utilisation, "machine": machine(),
                }  # fmt: skip
                with options.file.open("a") as file:
                    file.write(json.dumps(line, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
