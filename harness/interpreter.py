"""Levels G0 and N0: our GPU and NPU kernels in Triton's interpreter, on CPU tensors, in a process of their own.

``TRITON_INTERPRET=1 python -m minimax_m2.harness.interpreter routing --cases 12`` prints one JSON object, with
``--case JSON`` in place of a number what that case gives. What the interpreter gets wrong of bfloat16 is mended for NPU
kernels, which widen all they load; GPU kernels need not. Triton decides what ``@triton.jit`` makes when a kernel's file
is imported, so the variable must be set before.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy
import torch

from minimax_m2.harness.bad_calls import answered_by_launches
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.exact import RECIPES, mismatch
from minimax_m2.harness.huge import SPREAD, far_call, far_case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.npu import interpreted_bfloat16
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.verdict import Outcome

# A program takes milliseconds here: what a tile edge can show, a few dozen rows show.
MOST_ROWS = 80
# Cases to choose bad calls from.
DRAWN = 40
LEVELS = {"gpu": "G0", "npu": "N0"}


@dataclass(frozen=True, slots=True)
class Interpreted:
    """What one op's cases gave; ``launches`` is the witness that Triton functions ran, and nothing else did.

    ``idle`` counts judged cases without tokens, which launch nothing.
    """

    op: str
    judged: int
    refused: int
    idle: int
    launches: int
    failures: tuple[str, ...]


def interpreted(file: str = "", device: str = "gpu") -> Provider:
    """Our kernels of a device, or somebody's in a file, as a provider of CPU tensors.

    Raises RuntimeError unless TRITON_INTERPRET=1 was set before anything imported Triton.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET is not 1; start a process of its own with it, Triton reads it on import")
    given = from_file(file) if file else replace(ours(device), device="cpu")
    unshown = refuses_bfloat16 if device == "gpu" else refuses
    return replace(given, refuses=lambda op, case: unshown(op, case) or given.refuses(op, case))


def refuses_bfloat16(op: Op, case: Any) -> str | None:
    """Why a case cannot be shown where the interpreter is as it comes."""
    if "bfloat16" in (case.get("dtype"), case.get("table"), case.get("out")):
        return "Triton's interpreter computes bfloat16 on raw bits and rounds to it by cutting off"
    return refuses(op, case)


def refuses(op: Op, case: Any) -> str | None:
    """Why a case cannot be shown here."""
    if int(case.get("T", 0)) > MOST_ROWS:
        return f"the interpreter takes milliseconds a row; more than {MOST_ROWS} rows show no new edge of a tile"
    if op.name == "attention" and case["queries"] != "one" and int(case["S"]) > MOST_ROWS // 2:
        return f"the interpreter takes milliseconds a tile; prompts are shown up to {MOST_ROWS // 2} keys"
    if op.name in ("moe_align", "router", "router_gemm") and int(case["E"]) > MOST_ROWS:
        return f"the interpreter takes milliseconds an expert; it is shown up to {MOST_ROWS}"
    return None


def judged(name: str, count: int, file: str = "", device: str = "gpu", case: Case | None = None) -> Interpreted:
    """Judge an op: the first ``count`` sampled cases that are not refused, exact, bad and far calls; or one case."""
    provider = interpreted(file, device)
    let_loops_end_at_scalars()
    if device == "npu":
        interpreted_bfloat16.install()
    again = f"TRITON_INTERPRET=1 {replay('minimax_m2.harness.interpreter', name, file=file, device=device)}"
    if case:
        return judged_by(provider, name, count, _counted_launches(), replay=again, cases=[case])
    found = judged_by(provider, name, count, _counted_launches(), replay=again)
    more = (*inexact(provider, name), *unrefused(provider, name), *unreached(provider, name))
    return replace(found, failures=(*found.failures, *more))


def inexact(provider: Provider, name: str) -> list[str]:
    """Where an op's exact calls do not give the only right result."""
    if name not in RECIPES or not provider.offers(name):
        return []
    bits = Bits(Case({"op": name, "seed": 0}))
    told = {dtype: mismatch(name, provider, bits, dtype) for dtype in (torch.float16, torch.float32)}
    return [f"{name}, exact call in {dtype}: {text}" for dtype, text in told.items() if text]


def unrefused(provider: Provider, name: str) -> list[str]:
    """Bad calls of an op that are answered; those of indices must leave this process alive."""
    op = find_op(name)
    taken = [case for case in sampled(op, DRAWN) if provider.refuses(op, case) is None]
    return [f"{name}, bad call: {told}" for told in answered_by_launches(op, provider, taken)]


def unreached(provider: Provider, name: str) -> list[str]:
    """What an op makes of rows whose offsets pass 2^31 elements, where that is wrong."""
    if name not in SPREAD:
        return []
    op = find_op(name)
    case = far_case(op, provider, sampled(op, DRAWN))
    told = far_call(op, case, provider)
    return [f"{name}, rows past 2^31 elements: {told}\n  case {case.json}"] if told else []


def replay(module: str, *names: str, **options: str) -> str:
    """The command that judges ops, to be continued by a case."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value]
    return shlex.join(["python", "-m", module, *names, *(word for pair in given for word in pair)])


def judged_by(
    provider: Provider, name: str, count: int, launches: list[str], *, replay: str, first: Iterable[Case] = (),
    cases: Iterable[Case] | None = None,
) -> Interpreted:  # fmt: skip
    """Judge a provider whose launches are noted in a list on the first ``count`` cases that it takes.

    replay  the command that a failure's case is to follow
    first   cases before those that are sampled for all
    cases   in place of all these
    """
    op, passed, refused, idle, failures = find_op(name), 0, 0, 0, []
    drawn = [*first, *sampled(op, 8 * count)] if cases is None else cases
    for case in drawn:
        verdict = judge(Case(case), provider)
        refused += verdict.outcome is Outcome.UNSUPPORTED
        idle += verdict.outcome is not Outcome.UNSUPPORTED and case.get("T") == 0
        if verdict.passed:
            passed += 1
        elif verdict.outcome is not Outcome.UNSUPPORTED:
            failures.append(verdict.explain(replay=f"{replay} --case {shlex.quote(case.json)}"))
        if passed + len(failures) == count:
            break
    return Interpreted(name, passed + len(failures), refused, idle, len(launches), tuple(failures))


def _counted_launches() -> list[str]:
    """Names of the kernels that the interpreter runs from now on."""
    from triton.runtime.interpreter import GridExecutor

    # The interpreter divides by zero and overflows as a GPU does; numpy would print each.
    numpy.seterr(all="ignore")
    launches: list[str] = []
    run = GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    GridExecutor.__call__ = counted
    return launches


def let_loops_end_at_scalars() -> None:
    """A scalar of a kernel is an array of one number here, which numpy 2.4 no longer takes for an int."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def in_own_process(name: str, count: int, file: str = "", device: str = "gpu") -> Interpreted:
    """Judge in a new process; RuntimeError with its output where it dies."""
    given = ["--cases", str(count), "--file", file, "--device", device]
    command = [sys.executable, "-m", "minimax_m2.harness.interpreter", name, *given]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{LEVELS[device]} {name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Interpreted(**{**found, "failures": tuple(found["failures"])})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("op")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--file", default="", help="a provider file of Triton kernels; ours without it")
    parser.add_argument("--device", default="gpu", choices=LEVELS)
    parser.add_argument("--case", type=Case.from_json, help="judge this one, as a failure prints it")
    given = parser.parse_args(arguments)
    return answered(judged(given.op, given.cases, given.file, given.device, given.case), given.case)


def answered(found: Interpreted, case: Case | None = None) -> int:
    """Print what was found as JSON, and of one case in words; 1 where that case fails, else 0."""
    if case is None:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return 0
    passed = f"{found.op}: the case passes, {found.launches} launches" if found.judged else f"{found.op}: refused here"
    sys.stdout.write("\n".join(found.failures or [passed]) + "\n")
    return int(bool(found.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
