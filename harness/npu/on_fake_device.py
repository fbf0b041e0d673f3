"""Level N4: ops and the whole model on a fake ``npu:0``, where placement and dispatch happen; in a process of its own.

``python -m minimax_m2.harness.npu.on_fake_device ops rms_norm rope --cases 12`` judges ops as any provider's and
prints a JSON object each, with ``--case JSON`` in place of a number what that case gives; ``... model --length 64``
runs tiny-m2 and prints one. A launch of Triton is the IR of level
N3a, run on the device's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.interpreter import Interpreted, answered, judged_by, replay
from minimax_m2.harness.language import eval_windows, language_score, placed, provider_table, reference_logits
from minimax_m2.harness.model_verdict import model_judge
from minimax_m2.harness.models import own_steps, tiny_m2
from minimax_m2.harness.npu import fake_device, torch_npu_emulated
from minimax_m2.harness.npu.launches import taken_over
from minimax_m2.harness.npu.lowered_run import running
from minimax_m2.harness.npu.our_kernels import provider
from minimax_m2.harness.npu.toolchain import compiler
from minimax_m2.harness.npu.torch_npu_schemas import releases
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.torch_npu import CAN, torch_npu
from minimax_m2.harness.timed_models import config_of, ids_of, model_case, weights_of
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import Checkpoint

LEVEL = "N4"


@dataclass(frozen=True, slots=True)
class ModelOnFake:
    """tiny-m2 on ``npu:0``.

    cross_entropy, expected  nats a token of the float64 reference there and on the CPU
    is_same                  whether all its logits are the same bits
    verdict, evidence        of the model in bfloat16 on our kernels, by ``model_verdict``
    own, steps               how many steps of that model were our kernels', of how many
    launches, dispatched     Triton launches, and ops that went to the device
    """

    cross_entropy: float
    expected: float
    is_same: bool
    verdict: str
    evidence: str
    own: int
    steps: int
    launches: int
    dispatched: int


@contextmanager
def device(launches: list[str]) -> Iterator[None]:
    """Make the device, and run what is launched on it."""
    fake_device.install()
    with compiler() as by:
        run = running(by, launches)
        with fake_device.card(), taken_over(lambda launch: run(fake_device.launch_in_memory(launch))):
            yield


def on_fake(file: str = "", release: str = "") -> Provider:
    """Our NPU kernels, somebody's in a file, or torch_npu's operators as a release has them, on the fake device."""
    if release:
        torch_npu_emulated.install(release)
    return torch_npu() if release and not file else replace(provider(file), device="npu")


def joined(first: Provider, second: Provider) -> Provider:
    """What the first offers, and where it has nothing, what the second does."""
    return replace(first, functions=lambda name: first.functions(name) or second.functions(name))


def judged(
    names: Sequence[str], count: int, file: str = "", release: str = "", case: Case | None = None
) -> Iterator[Interpreted]:
    """Judge the first ``count`` sampled cases of each op, or one case; with a release, such as torch_npu's take."""
    launches: list[str] = []
    with device(launches):
        given = on_fake(file, release)
        for name in names:
            launches.clear()
            again = replay("minimax_m2.harness.npu.on_fake_device", "ops", name, file=file, torch_npu=release)
            fitting = CAN.fitting(find_op(name), count) if release else None
            yield judged_by(given, name, count, launches, replay=again, cases=[case] if case else fitting)


def model(length: int, file: str = "", release: str = "") -> ModelOnFake:
    """Run tiny-m2: ``length`` tokens of held-out text by the reference, and a prefill of as many by our kernels.

    With a release, torch_npu's operators take the steps that we have no kernel of.

    Raises RuntimeError outside a checkout.
    """
    folder = tiny_m2()
    if folder is None:
        raise RuntimeError("suites/data/tiny-m2 is not here: run from a checkout")
    ids = eval_windows(folder, windows=1, length=length)
    expected = reference_logits(folder, windows=1, length=length)
    case = model_case("tiny-m2", "prefill", {"B": 1, "S": length})
    judge = model_judge(case)
    launches: list[str] = []
    with device(launches):
        checkpoint = Checkpoint(folder)
        reference = MiniMaxM2(checkpoint.config, placed(checkpoint.load(torch.float64), "npu"))
        found = reference(ids.to("npu")).cpu()
        ours = on_fake(file) if not release else joined(on_fake(file), on_fake("", release))
        table = MiniMaxM2(config_of(case), placed(weights_of(case), "npu"), ops=provider_table(ours))
        logits = []
        for draw in ids_of(case):
            cache = table.new_cache(tokens=[length])
            logits.append(table.prefill(dict(enumerate(draw.to("npu"))), cache).cpu())
    verdict = judge.judge(logits, ours, "")
    own, steps = own_steps(ours)
    return ModelOnFake(
        cross_entropy=language_score(found, expected, ids).cross_entropy,
        expected=language_score(expected, expected, ids).cross_entropy,
        is_same=torch.equal(found, expected),
        verdict=verdict.outcome.value,
        evidence="; ".join(str(told) for told in verdict.evidence),
        own=own,
        steps=steps,
        launches=len(launches),
        dispatched=fake_device.DISPATCHED.total(),
    )


def in_own_process(*given: str) -> list[dict[str, Any]]:
    """Run in a new process: the JSON objects that it prints. Raises RuntimeError with its output where it fails."""
    done = subprocess.run([sys.executable, "-m", __name__, *given], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{LEVEL} {' '.join(given)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    kinds = parser.add_subparsers(dest="what", required=True)
    ops, whole = kinds.add_parser("ops"), kinds.add_parser("model")
    ops.add_argument("names", nargs="+", choices=all_ops(), metavar="OP")
    ops.add_argument("--cases", type=int, default=12)
    ops.add_argument("--case", type=Case.from_json, help="judge this one of one op, as a failure prints it")
    whole.add_argument("--length", type=int, default=64)
    for each in (ops, whole):
        each.add_argument("--file", default="", help="a provider file of NPU kernels; ours without it")
        each.add_argument("--torch-npu", default="", choices=releases(), help="call torch_npu's operators, emulated")
    asked = parser.parse_args(given)
    if asked.what == "model":
        sys.stdout.write(json.dumps(asdict(model(asked.length, asked.file, asked.torch_npu))) + "\n")
        return 0
    worst = 0
    for found in judged(asked.names, asked.cases, asked.file, asked.torch_npu, asked.case):
        worst = max(worst, answered(found, asked.case))
        sys.stdout.flush()
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
