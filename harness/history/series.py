"""A series: what is measured again and again, named by nothing that was measured."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass

from minimax_m2.harness.record import Record


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Series:
    """One case of one provider on one kind of chip, timed in one way.

    chip    the processor's or accelerator's name as its driver gives it, without clocks or temperatures
    shape   the op's named shape, empty where a case is only judged
    clock   how the time is taken, empty where it is not: two ways never make one line

    Which call was faster, which machine of a fleet ran it and what software it had are properties of a point: they may
    change from night to night, and a step there says so.
    """

    op: str
    provider: str
    device: str
    variant: str
    chip: str
    threads: int
    shape: str
    clock: str
    case_id: str

    @property
    def key(self) -> str:
        return "\x1f".join(str(part) for part in astuple(self))

    @property
    def id(self) -> str:
        """Eight hex digits, for commands and pages."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]

    @property
    def lane(self) -> str:
        """What shares a time axis and a canary: the chip."""
        return f"{self.chip}, {self.threads} threads" if self.device == "cpu" else self.chip

    def __str__(self) -> str:
        return "/".join(filter(None, (self.op, self.device, self.provider, self.variant, self.shape)))


def series_of(record: Record) -> Series:
    """The series that a record continues."""
    chip = record.machine.get("accelerator") if record.device == "gpu" else record.machine.get("processor")
    timing = record.timing
    return Series(
        op=record.op,
        provider=record.provider,
        device=record.device,
        variant=record.variant,
        chip=str(chip or record.device),
        threads=int(record.machine.get("threads", 0)),
        shape="" if timing is None else timing.shape,
        clock="" if timing is None else timing.clock,
        case_id=record.case_id,
    )
