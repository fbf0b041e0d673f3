"""What each fused op is worth in a whole model: the model beside itself with the op in its parts, interleaved.

Both run on the same weights, from the same kernels otherwise; both are held against the float32 reference first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.continuation import behind_drawn_keys, prefilled
from minimax_m2.harness.devices import synchronise, torch_device
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.model_bench import Plan, read_bytes_per_s, too_large
from minimax_m2.harness.paired import PairRecord, paired
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.record import Record, Timing
from minimax_m2.harness.run import run_name
from minimax_m2.harness.verdict import Verdict
from minimax_m2.harness.wide_model import WideModel, bytes_of, judge_of, proof, wide_model
from minimax_m2.reference.communicator import Single
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.generation import likeliest
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.table import STEPS, OpTable, op_table

# A fusion by its name, and the steps that a table must lack so that it is made of parts; a table composes the rest.
FUSIONS = {
    "add_rms_norm": ("add_rms_norm",),
    "qk_norm_rope_cache": ("qk_norm_rope_cache",),
    "qk_norm_rope": ("qk_norm_rope_cache", "qk_norm_rope"),
    "router": ("router",),
}
BATCHES = (1, 4, 16, 32, 64)
# Tokens that a sequence holds before a decode, and those that a prompt brings: 64 of these are a pass of 8,192.
HELD, PROMPT = 1024, 128
# Tokens that a sample of a decode may take.
ROOM = 8


def without(provider: Provider, fusion: str) -> OpTable:
    """The provider's table with one fused op composed of its own finer ones. KeyError for what is no fusion."""
    found = {step: provider.functions(step) for step in STEPS if step not in FUSIONS[fusion]}
    return op_table({step: op for step, op in found.items() if op is not None}, name=provider.name)


def ablated(
    plan: Plan, config: MiniMaxM2Config, *, device: str, batches: Sequence[int] = BATCHES, seconds: float = 1.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[PairRecord]:  # fmt: skip
    """Compare the model with each of its ablations, by batch, in a decode step and in the time to the first token.

    Raises MemoryError, before anything is drawn, for a model that does not fit.
    """
    provider, label = ours(device), run_name()
    config = replace(config, num_hidden_layers=plan.layers)
    if (told := too_large(config, Single(), device)) is not None:
        raise MemoryError(told)
    tell(f"drawing {plan.layers} layers")
    whole = wide_model(plan.case(1), config, provider, Single(), torch_device(device))
    tell("the reference, float32, and its defects")
    judge = judge_of(whole)
    right = proof(whole, judge, is_captured=device == "gpu")
    speed = read_bytes_per_s(device)
    for fusion in FUSIONS:
        model = MiniMaxM2(config, whole.weights, ops=without(provider, fusion))
        parts = replace(whole, model=model)
        apart = proof(parts, judge, is_captured=device == "gpu")
        for batch in batches:
            for make in (Decode, FirstToken):
                tell(f"{make.__name__} of {batch}, {fusion} in its parts")
                sides = make(whole, batch), make(parts, batch)
                found = paired(*sides, seconds=seconds)
                case = whole.case.but(phase=sides[0].phase, B=batch, S=sides[0].length)
                moved = bytes_of(whole.weights, config).of(active=0, cached=batch * sides[0].length)
                records = [
                    _record(case, verdicts, variant, times, label, moved / speed)
                    for verdicts, variant, times in ((right, "", found.a), (apart, f"without {fusion}", found.b))
                ]
                yield PairRecord(
                    a=records[0], b=records[1], ratio=found.ratio, low=found.low, high=found.high, blocks=found.blocks,
                    others=0.0, processes=1, setting={"fusion": fusion, "layers": plan.layers, "B": batch},
                    date=datetime.now(UTC).date().isoformat(),
                )  # fmt: skip


def _record(
    case: Case, verdicts: Sequence[Verdict], variant: str, seconds: Sequence[float], label: str, roof: float
) -> Record:  # fmt: skip
    """A side with the worse of its two verdicts; the roof is that of the weights that every step reads."""
    verdict = next((v for v in verdicts if not v.passed), verdicts[-1])
    timing = Timing(
        shape=case.word("phase"), call=case.word("phase"), median_us=statistics.median(seconds) * 1e6,
        best_us=min(seconds) * 1e6, calls=len(seconds), bytes=0, flops=0, roof_us=roof * 1e6, clock="events",
    )  # fmt: skip
    found = replace(verdict, case=case, variant=variant)
    return replace(Record.of(found, run=label, timing=timing, purpose="compare"), kind="model step")


class Decode:
    """Steps of a batch behind drawn keys, a graph each on a GPU."""

    phase, length = "decode", HELD

    def __init__(self, wide: WideModel, batch: int) -> None:
        is_gpu = wide.provider.device == "gpu"
        self._going = behind_drawn_keys(wide.model, sequences=batch, held=HELD, most=ROOM, is_captured=is_gpu)
        self._first = torch.arange(batch, device=wide.model.device)

    def start(self) -> str:
        self.sample(1)
        return self.phase

    def sample(self, calls: int) -> float:
        self._going.start(self._first)
        return sum(self._going.timed(min(calls, ROOM))) * calls / min(calls, ROOM)

    def outputs(self, draw: int) -> Outputs:
        return (self._going.static.logits,)


class FirstToken:
    """A batch of prompts in one pass, until the host has their first tokens."""

    phase, length = "prefill", PROMPT

    def __init__(self, wide: WideModel, batch: int) -> None:
        self._wide, self._batch = wide, batch
        generator = torch.Generator().manual_seed(wide.case.number("seed"))
        ids = torch.randint(wide.config.vocab_size, (batch, PROMPT), generator=generator)
        self._prompts = dict(enumerate(ids.to(wide.model.device)))
        self._cache = wide.model.new_cache(tokens=[PROMPT] * batch)
        self._logits = torch.empty(0)

    def start(self) -> str:
        self.sample(1)
        return self.phase

    def sample(self, calls: int) -> float:
        synchronise(self._wide.provider.device)
        start = time.perf_counter()
        for _ in range(calls):
            for sequence in self._prompts:
                self._cache.release(sequence)
            self._logits = prefilled(self._wide.model, self._prompts, self._cache)
            likeliest(self._logits).tolist()
        return time.perf_counter() - start

    def outputs(self, draw: int) -> Outputs:
        return (self._logits,)
