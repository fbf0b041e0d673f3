"""``m2check compare --model``: one step of a whole model, ours beside somebody else's, verified and interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.model_verdict import ModelJudge, model_judge
from minimax_m2.harness.paired import Pairing, PairRecord, paired
from minimax_m2.harness.peers import apart, known_variant
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Canary, Record, Timing
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.run import run_name
from minimax_m2.harness.timed_models import DRAWS, EXPERTS, WHOLE, RemoteModel, cost_of
from minimax_m2.harness.worker import Worker
from minimax_m2.harness.wrong_use import asked

# A compiler may take so many seconds for a whole model on a machine that does other work.
COMPILING = 1200.0


@dataclass(frozen=True, slots=True)
class ModelSide:
    """A provider whose model is timed, the code path, and the process it lives in."""

    provider: Provider
    variant: str
    worker: Worker


@contextmanager
def model_side(text: str) -> Iterator[ModelSide]:
    """A provider by ``NAME``, ``NAME:VARIANT`` or file; the variants of transformers' model implement its experts.

    Raises NotHere with the reason where it is absent, WrongUse for an unknown name or variant.
    """
    name, _, variant = text.partition(":")
    with ExitStack() as stack:
        with asked():
            worker, provider = stack.enter_context(apart(name, deadline=COMPILING))
            known = EXPERTS if name in WHOLE else tuple(reversed(provider.variants))
            found = ModelSide(provider, known_variant(name, variant, known) or known[0], worker)
        yield found


def compare_models(
    names: tuple[str, str], case: Case, setting: dict[str, Field], seconds: float, roof: Roof,
    progress: Callable[[str], None],
) -> PairRecord:  # fmt: skip
    """Time one step of both models, and judge the logits of the timed calls."""
    with ExitStack() as stack:
        sides = []
        for text in names:
            progress(f"{text}: loading")
            sides.append(stack.enter_context(model_side(text)))
        judge = model_judge(case, progress)
        progress(f"{' beside '.join(names)}: compiling what compiles, then timing")
        timed = [RemoteModel(one.worker, case, one.variant) for one in sides]
        pairing: Pairing = paired(timed[0], timed[1], seconds=seconds)
        label = run_name()
        records = [
            record(one, [remote.outputs(draw)[0] for draw in range(DRAWS)], judge, taken, roof, label)
            for one, remote, taken in zip(sides, timed, (pairing.a, pairing.b), strict=True)
        ]
    return PairRecord(
        a=records[0], b=records[1], ratio=pairing.ratio, low=pairing.low, high=pairing.high, blocks=pairing.blocks,
        others=0.0, processes=2, setting={"model": case["model"], **setting}, date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def record(
    one: ModelSide, logits: list[Tensor], judge: ModelJudge, seconds: Sequence[float], roof: Roof, label: str
) -> Record:
    """Verdict and time of one side."""
    cost = cost_of(judge.case)
    timing = Timing(
        shape=judge.case.word("phase"), call=judge.case.word("phase"), median_us=statistics.median(seconds) * 1e6,
        best_us=min(seconds) * 1e6, calls=len(seconds), bytes=cost.bytes, flops=cost.flops,
        roof_us=roof.seconds(cost, "bfloat16") * 1e6,
        clock="stopwatch",
    )  # fmt: skip
    found = Record.of(
        judge.judge(logits, one.provider, one.variant),
        run=label,
        timing=timing,
        purpose="compare",
        canary=Canary.of(roof),
    )
    return replace(found, kind="model step", elements=judge.expected.numel())
