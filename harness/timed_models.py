"""A whole model to be timed: one step of it, prefill or decode, on weights and ids that every process draws alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.language import eval_windows, provider_table
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.op import Cost
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.harness.stopwatch import RUNS, Clock, Remote
from minimax_m2.harness.worker import Worker
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import Checkpoint, ModelWeights

PHASES = ("decode", "prefill")
# So many draws of the ids are timed in turn.
DRAWS = 4
# What a case of a model starts from: B sequences that hold S tokens before a decode, or bring them in a prefill.
FIELDS: dict[str, Field] = {"B": 1, "S": 64, "seed": 0}
# One decoder layer of MiniMax-M2's widths. 32 of its 256 experts fit into the memory of a desk, and so small a
# vocabulary leaves the time to the layer.
LAYER = MiniMaxM2Config(
    vocab_size=1024,
    hidden_size=3072,
    intermediate_size=1536,
    num_hidden_layers=1,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    rotary_dim=64,
    num_local_experts=32,
    num_experts_per_tok=8,
)
MODELS = ("tiny-m2", "m2-layer")
# Providers whose whole model is transformers', and its implementations of the experts, the default one first.
WHOLE = ("transformers", "torch-compile")
EXPERTS = ("grouped_mm", "batched_mm", "eager")


class Steps(Protocol):
    """One model on one case."""

    def step(self, draw: int) -> Tensor:
        """Logits ``[B, V]`` of each sequence's last token; the next call finds the caches as this one did."""
        ...


def model_case(model: str, phase: str, setting: dict[str, Field]) -> Case:
    """A model's case; ValueError for an unknown model, phase or field."""
    if model not in MODELS:
        raise ValueError(f"model {model!r} is unknown; use one of {', '.join(MODELS)}")
    if phase not in PHASES:
        raise ValueError(f"a model has no shape {phase!r}; it has {', '.join(PHASES)}")
    unknown = sorted(set(setting) - set(FIELDS))
    if unknown:
        raise ValueError(f"a model has no case field {unknown[0]!r}; it has {', '.join(FIELDS)}")
    case = Case({"op": "model", "model": model, "phase": phase, **FIELDS, **setting})
    if min(case.number("B"), case.number("S")) < 1:
        raise ValueError(f"B={case['B']} and S={case['S']}: a model takes at least one sequence of one token")
    return case


def config_of(case: Case) -> MiniMaxM2Config:
    """The configuration of a case's model; ValueError for tiny-m2 outside a checkout."""
    return LAYER if case["model"] == "m2-layer" else _tiny_m2().config


def weights_of(case: Case) -> ModelWeights:
    """The weights of a case's model in bfloat16: tiny-m2's as they are stored, the layer's drawn from its seed."""
    if case["model"] == "m2-layer":
        return random_weights(LAYER, seed=case.number("seed"), dtype=torch.bfloat16)
    return _tiny_m2().load(torch.bfloat16)


def ids_of(case: Case) -> Tensor:
    """``[draws, B, S]`` ids of a prefill; of a decode one more each, the last the new one's, the others the first's."""
    sequences, length = case.number("B"), case.number("S") + (case["phase"] == "decode")
    shape = (DRAWS, sequences, length)
    if case["model"] == "tiny-m2":
        folder = tiny_m2()
        assert folder is not None, "config_of refused the case"
        ids = eval_windows(folder, windows=DRAWS * sequences, length=length).reshape(shape)
    else:
        generator = torch.Generator().manual_seed(case.number("seed"))
        ids = torch.randint(LAYER.vocab_size, shape, generator=generator)
    if case["phase"] == "decode":
        ids[:, :, :-1] = ids[:1, :, :-1].clone()
    return ids


def cost_of(case: Case) -> Cost:
    """What a step must at least do: the weights that its tokens need and the cached keys, once; their products."""
    c, sequences, length = config_of(case), case.number("B"), case.number("S")
    tokens = sequences * (length if case["phase"] == "prefill" else 1)
    projections = c.hidden_size * 2 * (c.q_width + c.kv_width)
    expert = 3 * c.hidden_size * c.intermediate_size
    chosen = c.num_experts_per_tok / c.num_local_experts
    active = c.num_local_experts * (1 - (1 - chosen) ** tokens)
    router = c.num_local_experts * c.hidden_size
    keys = 2 * sequences * length * c.kv_width
    # A prefill's query sees half of its sequence's keys.
    seen = length / 2 if case["phase"] == "prefill" else length
    head = c.vocab_size * c.hidden_size
    moved = c.num_hidden_layers * (2 * projections + 2 * expert * active + 4 * router + 2 * keys) + 2 * head
    products = projections + expert * c.num_experts_per_tok + router + 2 * seen * c.q_width
    return Cost(bytes=int(moved), flops=int(2 * (tokens * c.num_hidden_layers * products + sequences * head)))


class TableSteps:
    """The one model on a table of ops."""

    def __init__(self, case: Case, ops: object) -> None:
        self._case, self._ids = case, ids_of(case)
        self._model = MiniMaxM2(config_of(case), weights_of(case), ops=ops)
        self._sequences = range(case.number("B"))
        self._cache = self._model.new_cache(tokens=[self._ids.shape[2]] * case.number("B"))
        if case["phase"] == "decode":
            self._prefill(self._ids[0, :, :-1])

    def step(self, draw: int) -> Tensor:
        if self._case["phase"] == "decode":
            logits = self._model.decode(self._ids[draw, :, -1], self._cache, sequences=self._sequences)
        else:
            logits = self._prefill(self._ids[draw])
        held = self._case.number("S") if self._case["phase"] == "decode" else 0
        for sequence in self._sequences:
            self._cache.truncate(sequence, held)
        return logits

    def _prefill(self, ids: Tensor) -> Tensor:
        return self._model.prefill(dict(enumerate(ids)), self._cache)


class TimedModel:
    """Times a model in this process, its draws in turn."""

    def __init__(self, provider: Provider, steps: Steps, case: Case, variant: str, clock: Clock) -> None:
        self._provider, self._steps, self._case, self._variant, self._clock = provider, steps, case, variant, clock
        self._returned: list[Any] = [None] * DRAWS
        self._next = 0

    def start(self) -> str:
        """Run every draw twice: what compiles or allocates at its first call has done so."""
        with self._provider.enter(self._variant):
            self._run(2 * DRAWS)
        return str(self._case["phase"])

    def sample(self, calls: int) -> float:
        with self._provider.enter(self._variant):
            self._run(1)
            return min(self._run(calls) for _ in range(RUNS))

    def outputs(self, draw: int) -> Outputs:
        return (self._returned[draw].to(torch.float32),)

    def _run(self, calls: int) -> float:
        start = self._clock()
        with torch.inference_mode():
            for _ in range(calls):
                self._returned[self._next] = self._steps.step(self._next)
                self._next = (self._next + 1) % DRAWS
        return self._clock() - start


def timed_model(
    provider: Provider, case: str, variant: str = "", clock: Callable[[], float] = time.perf_counter
) -> TimedModel:
    """A provider's model: transformers' own where the provider is of it, else the one model on the provider's ops."""
    from minimax_m2.harness.providers.transformers_steps import TransformersSteps

    drawn = Case.from_json(case)
    if provider.name in WHOLE:
        steps: Steps = TransformersSteps(drawn, experts=variant, is_compiled=provider.name == "torch-compile")
    else:
        steps = TableSteps(drawn, provider_table(provider))
    return TimedModel(provider, steps, drawn, variant, clock)


class RemoteModel(Remote):
    """A timed model in a worker's process, which stands still but for its own turns."""

    def __init__(self, worker: Worker, case: Case, variant: str = "") -> None:
        self._worker = worker
        self._made = worker.make("minimax_m2.harness.timed_models:timed_model", case=case.json, variant=variant)
        worker.rests = True


def _tiny_m2() -> Checkpoint:
    folder = tiny_m2()
    if folder is None:
        raise ValueError("tiny-m2 is not here: run from a checkout, or time --model m2-layer")
    return Checkpoint(folder)
