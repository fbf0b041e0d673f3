"""Levels N3a and N3b: what Huawei's compiler makes of our NPU kernels, run on this CPU, judged as any provider.

``python -m minimax_m2.harness.npu.executed qk_norm_rope --level N3b --cases 40`` prints one JSON object, with
``--case JSON`` in place of a number what that case gives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from minimax_m2.harness.case import Case
from minimax_m2.harness.interpreter import Interpreted, answered, judged_by, replay
from minimax_m2.harness.npu import lowered_run, planned_run
from minimax_m2.harness.npu.launches import taken_over
from minimax_m2.harness.npu.our_kernels import built, provider, shapes_of
from minimax_m2.harness.npu.toolchain import absence, compiler

# The exit code of ``m2check`` for it.
NOTHING_MEASURED = 5
RUNNING = {"N3a": lowered_run.running, "N3b": planned_run.running}


def judged(name: str, count: int, level: str, file: str = "", case: Case | None = None) -> Interpreted:
    """Judge the first ``count`` sampled cases of an op, its shapes at M2's widths first, or one case."""
    launches: list[str] = []
    again = replay("minimax_m2.harness.npu.executed", name, level=level, file=file)
    with compiler() as by, taken_over(RUNNING[level](by, launches)):
        return judged_by(
            provider(file), name, count, launches, replay=again, first=shapes_of(name), cases=[case] if case else None
        )


def in_own_process(name: str, count: int, level: str, file: str = "") -> Interpreted:
    """Judge in a new process, which a kernel that writes outside may take down; RuntimeError with its output then."""
    command = [sys.executable, "-m", __name__, name, "--level", level, "--cases", str(count), "--file", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{level} {name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Interpreted(**{**found, "failures": tuple(found["failures"])})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("op", choices=built(), metavar="OP")
    parser.add_argument("--level", default="N3a", choices=RUNNING)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--case", type=Case.from_json, help="judge this one, as a failure prints it")
    parser.add_argument("--file", default="", help="a provider file of Triton kernels; ours without it")
    given = parser.parse_args(arguments)
    if reason := absence(given.level):
        sys.stderr.write(f"{given.level} is not here: {reason}\n")
        return NOTHING_MEASURED
    return answered(judged(given.op, given.cases, given.level, given.file, given.case), given.case)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
