"""Every CPU kernel under ASan and UBSan: a line of a record for each op and instruction set.

``python -m minimax_m2.harness.sanitized RECORD.jsonl`` goes on where the record ends: what it holds of the same kernels
and as many cases is not run again. An op is judged in a process of its own, which a report ends; the instruction sets
that are left get another.

A case is judged as everywhere, in guarded memory. That is one block to a sanitizer, so every way to call the op is
called once more on tensors that end where their allocation does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from minimax_m2.harness.arena import LARGEST, span
from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import blank, build, call, expected, judge
from minimax_m2.harness.op import Op, all_ops, find_op
from minimax_m2.harness.provenance import kernel_hash, machine
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import cpu_extension, ours, stem_of
from minimax_m2.harness.run import judgeable
from minimax_m2.harness.verdict import Outcome

# What extension.py reads: set, every object is instrumented.
ASKED = "MINIMAX_M2_SANITIZE"
CASES = 24
RUNTIMES = ("libasan.so", "libubsan.so")
MODULE = "minimax_m2.harness.sanitized"
REPORT = re.compile(r"(ERROR: AddressSanitizer.*|kernels/cpu/\S+: runtime error: .*)")
FRAME = re.compile(r"#\d+ \S+ in (.+) (?:\S*/)?(kernels/cpu/\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What became of one op on one instruction set.

    cases    sampled cases asked for
    calls    calls on tensors that end where their allocation does, beside those that were judged
    finding  the first report or wrong verdict, empty where there is none
    kernel   hash of the sources
    """

    op: str
    variant: str
    cases: int
    calls: int
    seconds: float
    finding: str
    kernel: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.op, self.variant, self.cases, self.kernel


def read(path: Path) -> list[Held]:
    """The lines of a record, none where there is no file; of the same kernels and cases the last."""
    if not path.is_file():
        return []
    names = [field.name for field in fields(Held)]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [Held(**{name: line[name] for name in names}) for line in lines]
    return list({one.key: one for one in found}.values())


def judged(op: Op, variants: Iterable[str], count: int) -> Iterator[Held]:
    """Judge an op's cases with each instruction set in this process, which must have been started for it."""
    demand_instrumented(op.name)
    provider, kernel = ours(), kernel_hash(op.name, "ours", "cpu")
    for variant in variants:
        start, finding, calls = time.perf_counter(), "", 0
        for case in judgeable(op, provider, count):
            verdict = judge(case, provider, variant)
            if verdict.passed:
                calls += called(op, case, provider, variant)
            elif verdict.outcome is not Outcome.UNSUPPORTED:
                finding = finding or f"{verdict.outcome}: {verdict.evidence[0]} of {case.json}"
        yield Held(
            op=op.name, variant=variant, cases=count, calls=calls, seconds=round(time.perf_counter() - start, 1),
            finding=finding or ("" if calls else "no case was called"), kernel=kernel,
        )  # fmt: skip


def called(op: Op, case: Case, provider: Provider, variant: str) -> int:
    """Make every way to call an op on tight tensors; how many there were."""
    right, _ = expected(op, case, provider.contract.get(op.name, {}))
    ways = [name for name in (op.name, f"{op.name}_out") if provider.functions(name) is not None]
    for name in ways:
        arguments = {key: tight(value) for key, value in build(op, case, provider).items()}
        with provider.enter(variant):
            call(op, provider.function(name), arguments, blank(op, right, provider) if name != op.name else None)
    return len(ways)


def tight(value: Any) -> Any:
    """A tensor's copy whose allocation ends with its last element; in a packed value, each of them.

    What is larger than the arena copies stays where it is.
    """
    if isinstance(value, Tensor):
        if span(value) > LARGEST:
            return value
        whole = value.as_strided((span(value) // value.element_size(),), (1,)).clone()
        return whole.as_strided(value.shape, value.stride())
    if isinstance(value, tuple):
        items = [tight(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def demand_instrumented(op_name: str) -> None:
    """RuntimeError unless this process and the op's library report what a sanitizer sees."""
    loaded = Path("/proc/self/maps").read_text()
    library = cpu_extension().build(stem_of(op_name))
    if any(name not in loaded for name in RUNTIMES) or b"__asan_report" not in library.read_bytes():
        raise RuntimeError(f"{op_name} would run without a sanitizer: start with ci/sanitize.sh")


def instrumented() -> dict[str, str]:
    """The environment of a process whose kernels are watched.

    Python and torch are not instrumented: the runtimes come first, and what the two leave behind is not ours to report.
    """
    found = [
        subprocess.run(
            [cpu_extension().compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIMES
    ]
    watched = "detect_leaks=0:detect_stack_use_after_return=1"
    options = {"ASAN_OPTIONS": watched, "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**os.environ, **options, "LD_PRELOAD": " ".join(found)}


def held(op_name: str, variants: Sequence[str], count: int) -> Iterator[Held]:
    """Judge an op in processes of its own; who ends one is named by the report, and the others go on."""
    left, kernel = list(variants), kernel_hash(op_name, "ours", "cpu")
    while left:
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", MODULE, "--judge", op_name, "--cases", str(count), *left],
            env=instrumented(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        done = [Held(**json.loads(line)) for line in ended.stdout.splitlines() if line.startswith("{")]
        yield from done
        left = left[len(done) :]
        if left:
            sys.stderr.write(ended.stderr)
            yield Held(
                op=op_name, variant=left.pop(0), cases=count, calls=0, seconds=round(time.perf_counter() - start, 1),
                finding=told(ended.stderr) or f"ended with status {ended.returncode}", kernel=kernel,
            )  # fmt: skip


def told(report: str) -> str:
    """What a process said last: a sanitizer's report with the place in our sources, else its last line."""
    if (found := REPORT.search(report)) is None:
        return report.strip().rpartition("\n")[2]
    frame = FRAME.search(report, found.end())
    return found[1] + (f" in {frame[1]} {frame[2]}" if frame else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge all CPU kernels under sanitizers, or some ops; 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="ci/sanitize.sh", description=main.__doc__)
    parser.add_argument("record", type=Path, nargs="?", help="append to this .jsonl file, and go on where it ends")
    parser.add_argument("--op", action="append", choices=list(all_ops()), help="only this op (repeatable)")
    parser.add_argument("--cases", type=int, default=CASES, help="sampled cases of each op and instruction set")
    parser.add_argument("--jobs", type=int, default=1, help="ops at once; each compiles two objects at once")
    asked = parser.parse_args(arguments)
    os.environ[ASKED] = "1"
    provider, record = ours(), asked.record
    known = {one.key: one for one in (read(record) if record else [])}

    def one_op(name: str) -> list[Held]:
        kernel, variants = kernel_hash(name, "ours", "cpu"), provider.variants_of(name)
        done = [known[key] for v in variants if (key := (name, v, asked.cases, kernel)) in known]
        due = [v for v in variants if v not in {one.variant for one in done}]
        if due:
            cpu_extension().build(stem_of(name))
        return [*done, *(noted(one, record) for one in held(name, due, asked.cases))]

    with ThreadPoolExecutor(asked.jobs) as pool:
        lines = [one for found in pool.map(one_op, asked.op or all_ops()) for one in found]
    wrong = [one for one in lines if one.finding]
    sys.stdout.write(f"{len(wrong)} of {len(lines)} have a finding\n")
    return 1 if wrong else 0


def noted(one: Held, record: Path | None) -> Held:
    """Tell of a line, and append it to a record with the machine it was made on."""
    sys.stdout.write(f"{one.op} {one.variant}: {one.finding or 'clean'}, {one.calls} calls, {one.seconds} s\n")
    sys.stdout.flush()
    if record is not None:
        place = {name: machine()[name] for name in ("processor", "threads", "torch")}
        compiler = cpu_extension().compiler_version(cpu_extension().compiler())
        with record.open("a") as file:
            file.write(json.dumps({**asdict(one), **place, "compiler": compiler}) + "\n")
    return one


def judge_here(arguments: Sequence[str]) -> int:
    """What a process that is watched does: an op's name, the number of cases, its instruction sets."""
    # A compiler that is started from here is not to be watched.
    os.environ.pop("LD_PRELOAD", None)
    name, _, count, *variants = arguments
    for one in judged(find_op(name), variants, int(count)):
        sys.stdout.write(f"{json.dumps(asdict(one))}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    _, first, *rest = [*sys.argv, ""]
    sys.exit(judge_here([word for word in rest if word]) if first == "--judge" else main())
