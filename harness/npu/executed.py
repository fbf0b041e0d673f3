"""Levels N3a and N3b: what Huawei's compiler makes of our NPU kernels, run on this CPU, judged as any provider.

``python -m minimax_m2.harness.npu.executed qk_norm_rope --level N3b --cases 40`` prints one JSON object, with
``--case JSON`` in place of a number what that case gives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain, repeat

from minimax_m2.harness.case import Case
from minimax_m2.harness.interpreter import Interpreted, answered, judged_by, replay
from minimax_m2.harness.npu import lowered_run, planned_run
from minimax_m2.harness.npu.launches import taken_over
from minimax_m2.harness.npu.our_kernels import built, provider, shapes_of
from minimax_m2.harness.npu.toolchain import absence, compiler
from minimax_m2.harness.op import all_ops

# The exit code of ``m2check`` for it.
NOTHING_MEASURED = 5
RUNNING = {"N3a": lowered_run.running, "N3b": planned_run.running}


def judged(
    name: str, counts: Mapping[str, int], file: str = "", case: Case | None = None
) -> Iterator[tuple[str, Interpreted]]:
    """Judge an op at levels, each on so many sampled cases, its shapes at M2's widths first, or on one case."""
    with compiler() as by:
        for level, count in counts.items():
            launches: list[str] = []
            again = replay("minimax_m2.harness.npu.executed", name, level=level, file=file)
            with taken_over(RUNNING[level](by, launches)):
                yield (
                    level,
                    judged_by(
                        provider(file), name, count, launches, replay=again, first=shapes_of(name),
                        cases=[case] if case else None,
                    ),
                )  # fmt: skip


def in_own_process(name: str, counts: Mapping[str, int], file: str = "") -> dict[str, Interpreted]:
    """Judge in a new process, which a kernel that writes outside may take down; RuntimeError with its output then."""
    levels = [word for level, count in counts.items() for word in ("--level", level, "--cases", str(count))]
    command = [sys.executable, "-m", __name__, name, *levels, "--file", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' and '.join(counts)} of {name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found = [json.loads(line) for line in done.stdout.splitlines()[-len(counts) :]]
    return {
        level: Interpreted(**{**one, "failures": tuple(one["failures"])})
        for level, one in zip(counts, found, strict=True)
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("op", choices=all_ops(), metavar="OP")
    parser.add_argument("--level", action="append", choices=RUNNING, help="N3a without it; repeatable")
    parser.add_argument("--cases", action="append", type=int, help="of each level; 40 without it")
    parser.add_argument("--case", type=Case.from_json, help="judge this one, as a failure prints it")
    parser.add_argument("--file", default="", help="a provider file of Triton kernels; ours without it")
    given = parser.parse_args(arguments)
    # A file may stand for our kernels, which must not be imported then.
    if not given.file and given.op not in built():
        parser.error(f"{given.op} has no NPU kernel; use one of {', '.join(built())}")
    levels = given.level or ["N3a"]
    if reason := absence(max(levels)):
        sys.stderr.write(f"{max(levels)} is not here: {reason}\n")
        return NOTHING_MEASURED
    counts = dict(zip(levels, chain(given.cases or [], repeat(40)), strict=False))
    return max(answered(found, given.case) for _, found in judged(given.op, counts, given.file, given.case))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
