"""A night's measurements: what to time first, how long, beside what, and what of it is thrown away.

Cells come by their share of the model's time, until the budget is spent. Each is timed in blocks with the accepted
build. Between cells the machine is timed itself, by a copy and a product; a cell beside a machine that was slower than
it can be is timed once more, and left out if it stays so. Every cell is on disk when the next begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.commands_bench import timed_alone
from minimax_m2.harness.contenders import Refused, Side, compared
from minimax_m2.harness.history.weight import CALLS
from minimax_m2.harness.op import Op, all_ops, find_op
from minimax_m2.harness.provenance import kernel_hash, position
from minimax_m2.harness.record import Canary, Log, Pair, Record, read
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.shards import WHOLE, Shard
from minimax_m2.harness.worker import Ended

# Bytes of the copy, beyond a core's share of a cache, and the side of the product; each the best of a few: 60 ms.
COPY, SIDE, TRIES = 1 << 28, 768, 4
# A machine this much slower than at its best tonight is throttled, or somebody else's.
THROTTLED = 0.12
# Looks at the machine before the first cell, and seconds between them: a shared machine wanders by more than that.
LOOKS, BETWEEN = 8, 0.25
# A suspicious case is timed again so often.
RERUNS = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """One cell of a night."""

    op: Op
    shape: str
    provider: str
    weight: float

    @property
    def case(self) -> Case:
        return self.op.shape(self.shape)


def place(cell: Planned) -> tuple[str, str, str]:
    """What names a cell: op, shape, provider."""
    return cell.op.name, cell.shape, cell.provider


def plan(ops: Sequence[str], providers: Sequence[str], roof: Roof, *, shard: Shard = WHOLE) -> list[Planned]:
    """Cells by their op's share of a step, the largest first; of these a part, dealt in turn.

    Every cell is timed for as long as every other, so parts of as many cells cost the same; and each machine has its
    part of what matters most, should its budget end before its plan.
    """
    found = []
    for op in [find_op(name) for name in ops] or list(all_ops().values()):
        for shape in op.shapes:
            case = op.shape(shape)
            dtype = case.word("dtype") if "dtype" in case else "float32"
            least = roof.seconds(op.cost(case), dtype) * CALLS.get(op.name, 0)
            found += [Planned(op, shape, provider, least) for provider in providers]
    found.sort(key=lambda one: (-one.weight, one.op.name, one.shape, one.provider))
    return found[shard.index - 1 :: shard.count]


def canary() -> Canary:
    """How fast the machine is now."""
    source, target = torch.ones(COPY // 8), torch.empty(COPY // 8)
    a = torch.ones(SIDE, SIDE)
    copy, product = _best(lambda: target.copy_(source)), _best(lambda: torch.mm(a, a))
    return Canary(copy_gbps=COPY / copy / 1e9, gemm_gflops=2 * SIDE**3 / product / 1e9)


def _best(action: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(TRIES):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(slots=True)
class Canaries:
    """The machine's speed over a night, and whether it is as it can be."""

    measure: Callable[[], Canary] = canary
    pause: Callable[[float], None] = time.sleep
    seen: list[Canary] = field(default_factory=list)

    def first(self) -> Canary:
        """Look a few times, unless that was done tonight; the last is what stands before the next cell."""
        for _ in range(len(self.seen), LOOKS - 1):
            self.take()
            self.pause(BETWEEN)
        return self.take()

    def take(self) -> Canary:
        self.seen.append(self.measure())
        return self.seen[-1]

    def throttled(self, *these: Canary) -> bool:
        """Whether one of these is slower than the machine can be tonight by more than it wandered before the night."""
        return any(self._slow([getattr(one, name) for one in these], name) for name in ("copy_gbps", "gemm_gflops"))

    def _slow(self, speeds: Sequence[float], name: str) -> bool:
        seen = [getattr(one, name) for one in self.seen]
        return min(speeds) < min(max(seen) * (1 - THROTTLED), *seen[:LOOKS])


@dataclass(slots=True)
class Outcome:
    """What a night did: cells measured, of how many planned, those left out beside a slow machine, and refused ones."""

    cells: int = 0
    planned: int = 0
    throttled: int = 0
    refused: int = 0


@dataclass(kw_only=True)
class Night:
    """One run of the plan.

    sides     the providers by name
    accepted  the build that ours is held against
    build     where the kernels lie that ours are tonight, if they are another commit's
    """

    label: str
    roof: Roof
    sides: dict[str, Side]
    accepted: Side | None
    against: str
    seconds: float
    build: Path | None = None
    canaries: Canaries = field(default_factory=Canaries)
    outcome: Outcome = field(default_factory=Outcome)

    def run(
        self, cells: Sequence[Planned], log: Log, *, until: Callable[[], bool], progress: Callable[[str, float], None]
    ) -> None:
        """Measure cell after cell into a log, leaving out those that it already has, until ``until`` says so."""
        done = {(r.op, r.timing.shape if r.timing else "", r.provider) for r in read(log.path)}
        self.outcome.planned = len(cells)
        before = self.canaries.first()
        for number, cell in enumerate(cells):
            if place(cell) in done:
                self.outcome.cells += 1
                continue
            if until():
                break
            progress(f"{cell.provider} {cell.op.name} {cell.shape}", number / len(cells))
            for again in (True, False):
                found = self.measured(cell)
                after = self.canaries.take()
                slow, between, before = self.canaries.throttled(before, after), _mean(before, after), after
                if not slow or not found:
                    for record in found:
                        log.append(replace(record, canary=between).json)
                    self.outcome.cells += bool(found)
                    self.outcome.refused += not found
                    break
                self.outcome.throttled += not again

    def measured(self, cell: Planned, *, purpose: str = "nightly") -> list[Record]:
        """One cell: beside the accepted build where there is one, else alone; nothing where nobody offers it."""
        side = self.sides[cell.provider]
        if cell.provider == "ours" and self.accepted is not None:
            try:
                found = compared(cell.op, cell.case, cell.shape, {}, (side, self.accepted), self.seconds, self.roof)
            except (Refused, Ended):
                # The accepted build has not this op, or no longer runs here: ours is timed alone.
                pass
            else:
                # The ratio is the accepted build's time over ours.
                ratio, low, high = (-math.log(value) for value in (found.ratio, found.high, found.low))
                pair = Pair(against=self.against, log_ratio=ratio, low=low, high=high, blocks=found.blocks)
                return [self._of_build(replace(found.a, run=self.label, purpose=purpose, paired=pair))]
        alone = timed_alone(cell.op, cell.case, cell.shape, side, self.seconds, self.roof, self.label)
        return [self._of_build(replace(record, purpose=purpose)) for record in alone]

    def _of_build(self, record: Record) -> Record:
        """A record of ours says whose kernels it is of."""
        if self.build is None or record.provider != "ours":
            return record
        kernel = kernel_hash(record.op, "ours", record.device, self.build)
        code = {**record.code, **position(self.build.name), "kernel": kernel}
        return replace(record, code=code, machine={**record.machine, "commit": self.build.name})

    def again(self, cell: Planned, progress: Callable[[str, float], None]) -> list[Record]:
        """Time a suspicious cell a few times more, the machine beside it; what is throttled is left out."""
        looked: list[Record] = []
        for number in range(RERUNS):
            progress(f"again: {cell.provider} {cell.op.name} {cell.shape}", number / RERUNS)
            before, found, after = self.canaries.take(), self.measured(cell, purpose="rerun"), self.canaries.take()
            if not self.canaries.throttled(before, after):
                looked += [replace(record, canary=_mean(before, after)) for record in found]
        return looked


def _mean(a: Canary, b: Canary) -> Canary:
    return Canary(copy_gbps=(a.copy_gbps + b.copy_gbps) / 2, gemm_gflops=(a.gemm_gflops + b.gemm_gflops) / 2)
