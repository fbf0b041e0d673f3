"""Whole models on tiny-m2: one row a provider, scored on held-out text and timed."""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.language import (
    LanguageScore,
    eval_windows,
    language_score,
    provider_model,
    provider_table,
    reference_logits,
)
from minimax_m2.harness.provenance import machine
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import SCHEMA, Reporter, parsed
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.table import OpTable
from minimax_m2.reference.weights import Checkpoint

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What a model made of the text: ``score`` is None where it raised or gave NaN, and ``reason`` says what.

    own, steps  how many of the model's steps are the provider's, of how many; the others are the reference's
    """

    run: str
    provider: str
    seconds: float
    score: LanguageScore | None
    reason: str = ""
    own: int = 0
    steps: int = 0
    machine: dict[str, str | int] = field(default_factory=machine)
    kind: str = "model"
    schema: int = SCHEMA

    @property
    def cells(self) -> tuple[str, ...]:
        """Provider, its own steps, cross-entropy, top-1 agreement, divergence, seconds, as they are shown."""
        own = f"{self.own} of {self.steps} steps" if self.steps else ""
        if self.score is None:
            return (self.provider, own, self.reason, "", "", "")
        found = self.score
        figures = (f"{found.cross_entropy:.4f}", f"{100 * found.agreement:.1f} %", f"{found.divergence:.1e}")
        return (self.provider, own, *figures, f"{self.seconds:.1f}")

    @property
    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_models(path: Path, *, report: Reporter = warnings.warn) -> list[ModelRecord]:
    """The records of whole models in a ``.jsonl`` file of a run; ValueError names the line that is none."""
    found = []
    known = {f.name for f in fields(ModelRecord)}
    for number, line in parsed(path, report):
        if line.get("kind") != "model":
            continue
        if set(line) != known:
            raise ValueError(f"{path}, line {number}: lacks or adds fields: {sorted(set(line) ^ known)}")
        score = line.pop("score")
        found.append(ModelRecord(**line, score=None if score is None else LanguageScore(**score)))
    return found


def tiny_m2() -> Path | None:
    """The checkpoint in the checkout's suites, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "suites" / "data" / "tiny-m2"
    return folder if folder.is_dir() else None


def score_models(
    providers: Iterable[Provider], folder: Path, *, run: str, windows: int = 4, length: int = 512,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[ModelRecord]:  # fmt: skip
    """Score the float64 reference, each provider's kernels in bfloat16, and transformers where it is installed.

    A provider that offers no step of the model has no record: its model would be the reference.
    """
    ids = eval_windows(folder, windows=windows, length=length)
    progress("tiny-m2: reference, float64")
    start = time.perf_counter()
    expected = reference_logits(folder, windows=windows, length=length)
    seconds, score = time.perf_counter() - start, language_score(expected, expected, ids)
    yield ModelRecord(run=run, provider="reference float64", seconds=seconds, score=score)
    for name, (build, own, steps) in _models(providers, folder).items():
        progress(f"tiny-m2: {name}")
        yield ModelRecord(run=run, provider=name, own=own, steps=steps, **_scored(build, ids, expected))


def _models(providers: Iterable[Provider], folder: Path) -> dict[str, tuple[Callable[[], Model], int, int]]:
    """What builds each model, how many steps are its own, and of how many; none are counted of a whole model."""
    found: dict[str, tuple[Callable[[], Model], int, int]] = {
        "reference bfloat16": (partial(_reference_bfloat16, folder), 0, 0)
    }
    for provider in providers:
        own, steps = own_steps(provider)
        # Plain torch is the reference in float32; transformers is scored below as the model that it ships.
        if provider.name not in ("plain", "transformers") and own:
            name = provider.name if provider.device == "cpu" else f"{provider.name} {provider.device}"
            found[f"{name} bfloat16"] = (partial(provider_model, provider, folder), own, steps)
            found[f"{name} fp8"] = (partial(provider_model, provider, folder, keep_quantized=True), own, steps)
    if importlib.util.find_spec("transformers") is not None:
        found["transformers bfloat16"] = (partial(_transformers_bfloat16, folder), 0, 0)
    return found


def own_steps(provider: Provider) -> tuple[int, int]:
    """How many steps of the model a provider offers, whole or by their parts, and of how many; packing is no step."""
    sources = provider_table(provider).sources
    steps = [f.name for f in fields(OpTable) if f.name != "sources" and not f.name.startswith("pack_")]
    return sum(sources[step] != "reference" for step in steps), len(steps)


def _reference_bfloat16(folder: Path) -> Model:
    return MiniMaxM2.from_pretrained(folder, dtype=torch.bfloat16)


def _transformers_bfloat16(folder: Path) -> Model:
    from minimax_m2.harness.providers.transformers import TransformersModel

    checkpoint = Checkpoint(folder)
    return TransformersModel(checkpoint.config, checkpoint.load(torch.bfloat16), dtype=torch.bfloat16)


def _scored(build: Callable[[], Model], ids: Tensor, expected: Tensor) -> dict[str, Any]:
    """Seconds and score of a model, or the reason why it has none."""
    try:
        model = build()
        start = time.perf_counter()
        logits = model(ids.to(getattr(model, "device", ids.device))).cpu()
    except Exception as error:  # a provider's failure is its row, the others go on
        return {"seconds": 0.0, "score": None, "reason": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - start
    if not bool(torch.isfinite(logits).all()):
        return {"seconds": seconds, "score": None, "reason": "its logits are not finite"}
    return {"seconds": seconds, "score": language_score(logits, expected, ids)}
