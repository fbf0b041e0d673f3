"""Tokens a second and time to the first token of a model of MiniMax-M2's widths, on one device or over ranks.

A decode step is a graph that hands its tokens to the next; the keys that it finds in the cache are drawn, as what they
hold costs nothing. The time to the first token is that of a prompt's passes and of the choice, until the host has it.
``model_tables`` makes the tables of docs/models_gpu.md from the records.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.continuation import CHUNK, behind_drawn_keys, prefilled
from minimax_m2.harness.devices import available_bytes, synchronise, torch_device
from minimax_m2.harness.graph_timing import replayed
from minimax_m2.harness.model_verdict import DEFECTS
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.record import Record, Timing
from minimax_m2.harness.relay import Relay
from minimax_m2.harness.run import run_name
from minimax_m2.harness.symmetric import Symmetric
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.harness.wide_model import (
    Bytes,
    WideModel,
    active_experts,
    bytes_of,
    drawn_bytes,
    first_layers,
    judge_of,
    proof,
    wide_model,
)
from minimax_m2.reference.communicator import Communicator, Single
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.generation import likeliest

# A model of so many layers is held against every known defect; a deeper one against these, a pass of which takes
# seconds in float32.
SHALLOW = 8
GREATEST = ("experts add nothing", "attention adds nothing", "heads are not rotated")
# A time to the first token is repeated until there are so many, or so many seconds have passed.
REPEATS, SECONDS = 3, 6.0
# Bytes that a read of memory is timed on.
READ_BYTES = 1 << 31
# What a layer takes is a step's time less that of so many of its first layers alone.
FIRST = 2
# What a device keeps for activations, communication and the driver.
SPARE_BYTES = 3 << 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is timed: so many layers, loads of B sequences with S tokens each, and decoded tokens of each.

    sums  who adds over ranks: ``ranks``, their own collectives; ``symmetric``, by peers' memory; ``fused``, norms and
          the rotation themselves, by peers' memory
    """

    layers: int = MiniMaxM2Config().num_hidden_layers
    loads: tuple[tuple[int, int], ...] = ((1, 4096),)
    prompts: tuple[tuple[int, int], ...] = ((1, 4096),)
    tokens: int = 32
    seed: int = 0
    sums: str = "ranks"
    is_proven: bool = True

    def case(self, ranks: int) -> Case:
        """The case of its model, before a phase is named."""
        return Case({
            "op": "model", "model": "m2", "phase": "decode", "B": 1, "S": 1, "layers": self.layers, "tp": ranks,
            "sums": self.sums, "seed": self.seed,
        })  # fmt: skip


Tell = Callable[[str], None]


def bench_rank(communicator: Communicator, given: dict[str, Any], device: str = "gpu") -> list[str]:
    """One rank of ``launch``: its records as JSON; the roll is called for what is agreed on, not for what is timed."""
    plan = Plan(**given)
    inner = communicator.inner if isinstance(communicator, Relay) else communicator
    voice = inner if plan.sums == "ranks" else Symmetric(inner)
    with torch.inference_mode():
        return [record.json for record in timed_plan(plan, MiniMaxM2Config(), voice, device=device)]


def timed_plan(
    plan: Plan, config: MiniMaxM2Config, voice: Communicator | None = None, *, device: str,
    tell: Tell = lambda text: None,
) -> Iterator[Record]:  # fmt: skip
    """Draw the model, prove it, time its loads; a wrong one is not timed, what does not fit is told so."""
    voice, label = voice or Single(), run_name()
    config = replace(config, num_hidden_layers=plan.layers)
    if (told := too_large(config, voice, device)) is not None:
        yield _record(plan.case(voice.size), device, label, None, told, Outcome.UNSUPPORTED)
        return
    tell(f"drawing {plan.layers} layers")
    wide = wide_model(plan.case(voice.size), config, ours(device), voice, torch_device(device))
    size, evidence = bytes_of(wide.weights, config), ""
    if plan.is_proven:
        tell("the reference, float32, and its defects")
        known = tuple(DEFECTS) if plan.layers <= SHALLOW else GREATEST
        verdicts = proof(wide, judge_of(wide, known=known), is_captured=device == "gpu")
        yield from (replace(Record.of(v, run=label, purpose="bench"), kind="model proof") for v in verdicts)
        if not all(verdict.passed for verdict in verdicts):
            return
        evidence = verdicts[-1].evidence[0]
    _free(device)
    speed = read_bytes_per_s(device)
    deep = plan.loads if plan.layers > FIRST else ()
    for phase, loads, timed in (
        ("decode", plan.loads, _decode), ("layer", deep, _layer), ("prefill", plan.prompts, _prefill)
    ):  # fmt: skip
        for sequences, held in loads:
            tell(f"{phase} of {sequences} x {held}")
            case = wide.case.but(phase=phase, B=sequences, S=held)
            needed = sequences * (held + plan.tokens + 16) * size.keys + SPARE_BYTES
            if (reason := _refusal(voice, device, needed)) is not None:
                yield _record(case, device, label, None, reason, Outcome.UNSUPPORTED)
                continue
            timing, told = timed(wide, case, plan.tokens, size, speed)
            yield _record(case, device, label, timing, f"{told}; {evidence}" if evidence else told, Outcome.PASS)
            _free(device)


def too_large(config: MiniMaxM2Config, voice: Communicator, device: str) -> str | None:
    """Why a drawn model does not fit on some rank, or None; all ranks agree."""
    reason = _refusal(voice, device, drawn_bytes(config, voice.size) + SPARE_BYTES)
    told = f"{config.num_hidden_layers} layers do not fit: {reason}; set fewer layers, or more ranks"
    return None if reason is None else told


def _refusal(voice: Communicator, device: str, needed: int) -> str | None:
    """Why so much does not fit on some rank, or None; all ranks agree."""
    free = torch.cuda.mem_get_info()[0] if device == "gpu" else available_bytes()
    lacking = torch.tensor([float(max(0, needed - free))], device=torch_device(device))
    if not float(voice.all_reduce(lacking, label="free memory")):
        return None
    return f"{needed / 1e9:.1f} GB of weights, cache and workspace are needed, {free / 1e9:.1f} GB are free"


def _free(device: str) -> None:
    if device == "gpu":
        torch.cuda.empty_cache()


def _steps(wide: WideModel, case: Case, tokens: int) -> tuple[list[float], float]:
    """Seconds of steps behind a cache of drawn keys, one by one on the device, and the active experts of a layer."""
    sequences, held = case.number("B"), case.number("S")
    is_gpu = wide.provider.device == "gpu"
    going = behind_drawn_keys(wide.model, sequences=sequences, held=held, most=tokens, is_captured=is_gpu)
    first = torch.arange(sequences, device=wide.model.device) % wide.config.vocab_size
    seconds: list[float] = []
    for _ in range(2):
        # The first round warms up.
        going.start(first)
        seconds = going.timed(tokens)
    wide.raise_if_missing()
    if not bool(((going.tokens >= 0) & (going.tokens < wide.config.vocab_size)).all()):
        raise ValueError(f"{case}: a chosen token is outside the vocabulary")
    if not bool(torch.isfinite(going.static.logits).all()):
        raise ValueError(f"{case}: logits are not finite")
    going.start(first)
    return seconds, active_experts(going.static)


def _decode(wide: WideModel, case: Case, tokens: int, size: Bytes, speed: float) -> tuple[Timing, str]:
    """Time a step."""
    seconds, active = _steps(wide, case, tokens)
    cost = size.of(active=active, cached=case.number("B") * (case.number("S") + tokens // 2))
    return _timing(case, _call(wide), seconds, cost, speed), f"{active:.1f} active experts a layer"


def _layer(wide: WideModel, case: Case, tokens: int, size: Bytes, speed: float) -> tuple[Timing, str]:
    """Time what a layer adds to a step."""
    first = first_layers(wide, FIRST)
    seconds, active = _steps(wide, case, tokens)
    without = statistics.median(_steps(first, case, tokens)[0])
    more, cached = wide.config.num_hidden_layers - FIRST, case.number("B") * (case.number("S") + tokens // 2)
    least = bytes_of(first.weights, first.config).of(active=active, cached=cached)
    cost = (size.of(active=active, cached=cached) - least) // more
    told = f"a step of {more + FIRST} layers less one of {FIRST}, over {more}"
    return _timing(case, _call(wide), [(step - without) / more for step in seconds], cost, speed), told


def _call(wide: WideModel) -> str:
    return "graph" if wide.provider.device == "gpu" else "step"


def _prefill(wide: WideModel, case: Case, tokens: int, size: Bytes, speed: float) -> tuple[Timing, str]:
    """Time from prompts on the device to their first tokens on the host."""
    sequences, held = case.number("B"), case.number("S")
    generator = torch.Generator().manual_seed(case.number("seed"))
    prompts = torch.randint(wide.config.vocab_size, (sequences, held), generator=generator).to(wide.model.device)
    cache = wide.model.new_cache(tokens=[held] * sequences)
    seconds, logits = list[float](), torch.empty(0)
    while len(seconds) < 2 or (len(seconds) <= REPEATS and sum(seconds) < SECONDS):
        for sequence in range(sequences):
            cache.release(sequence)
        synchronise(wide.provider.device)
        # Whoever is ready first would else wait for the others within the time that it takes.
        wide.voice.all_reduce(torch.zeros(1, device=wide.model.device), label="ready")
        synchronise(wide.provider.device)
        start = time.perf_counter()
        logits = prefilled(wide.model, dict(enumerate(prompts)), cache)
        likeliest(logits).tolist()
        seconds.append(time.perf_counter() - start)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"{case}: logits are not finite")
    passes = -(-sequences * held // CHUNK)
    # Every pass of thousands of tokens meets all experts, and reads what its sequences hold by then.
    cost = size.of(active=wide.config.num_local_experts, cached=0) * passes + size.keys * sequences * held
    # The first run compiles what meets its sizes for the first time.
    return _timing(case, f"{passes} passes", seconds[1:], cost, speed), f"{sequences * held} tokens"


def _timing(case: Case, call: str, seconds: Sequence[float], moved: int, speed: float) -> Timing:
    return Timing(
        shape=case.word("phase"), call=call, median_us=statistics.median(seconds) * 1e6, best_us=min(seconds) * 1e6,
        calls=len(seconds), bytes=moved, flops=0, roof_us=moved / speed * 1e6,
        clock="events" if call == "graph" else "wall",
    )  # fmt: skip


def _record(
    case: Case, device: str, label: str, timing: Timing | None, evidence: str, outcome: Outcome
) -> Record:  # fmt: skip
    found = Verdict(
        outcome=outcome, op="model", case=case, provider="ours", device=device, variant="", evidence=(evidence,)
    )
    return replace(Record.of(found, run=label, timing=timing, purpose="bench"), kind="model step")


def read_bytes_per_s(device: str) -> float:
    """How fast memory is read: the better of a sum's and a copy's pace, past any cache."""
    if device != "gpu":
        x = torch.ones(READ_BYTES >> 7)
        x.sum()
        start = time.perf_counter()
        x.sum()
        return x.nbytes / (time.perf_counter() - start)
    sources = [torch.ones(READ_BYTES >> 2, device="cuda") for _ in range(2)]
    target = torch.empty_like(sources[0])
    summed = min(replayed([partial(torch.sum, x) for x in sources], budget=0.05))
    copied = min(replayed([partial(target.copy_, x) for x in sources], budget=0.05))
    return max(READ_BYTES / summed, 2 * READ_BYTES / copied)
