"""Whole models on tiny-m2: one row a provider, scored on held-out text and timed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.harness.language import (
    LanguageScore,
    eval_windows,
    language_score,
    provider_model,
    reference_logits,
)
from minimax_m2.harness.provider import Provider
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.weights import Checkpoint

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """What a model made of the text: ``score`` is None where it raised or gave NaN, and ``reason`` says what."""

    provider: str
    seconds: float
    score: LanguageScore | None
    reason: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Provider, cross-entropy, top-1 agreement, divergence, seconds, as they are shown."""
        if self.score is None:
            return (self.provider, self.reason, "", "", "")
        found = self.score
        figures = (f"{found.cross_entropy:.4f}", f"{100 * found.agreement:.1f} %", f"{found.divergence:.1e}")
        return (self.provider, *figures, f"{self.seconds:.1f}")


def tiny_m2() -> Path | None:
    """The checkpoint in the checkout's suites, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "suites" / "data" / "tiny-m2"
    return folder if folder.is_dir() else None


def score_models(
    providers: Iterable[Provider], folder: Path, *, windows: int = 4, length: int = 512,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[ModelRow]:  # fmt: skip
    """Score the float64 reference, each provider's kernels in bfloat16, and transformers where it is installed."""
    ids = eval_windows(folder, windows=windows, length=length)
    progress("tiny-m2: reference, float64")
    start = time.perf_counter()
    expected = reference_logits(folder, windows=windows, length=length)
    yield ModelRow(
        provider="reference float64", seconds=time.perf_counter() - start, score=language_score(expected, expected, ids)
    )
    for name, build in _models(providers, folder).items():
        progress(f"tiny-m2: {name}")
        yield _scored(name, build, ids, expected)


def _models(providers: Iterable[Provider], folder: Path) -> dict[str, Callable[[], Model]]:
    found: dict[str, Callable[[], Model]] = {"reference bfloat16": partial(_reference_bfloat16, folder)}
    for provider in providers:
        # Plain torch is the reference in float32; transformers is scored below as the model that it ships.
        if provider.name not in ("plain", "transformers"):
            found[f"{provider.name} bfloat16"] = partial(provider_model, provider, folder)
            found[f"{provider.name} fp8"] = partial(provider_model, provider, folder, keep_quantized=True)
    if importlib.util.find_spec("transformers") is not None:
        found["transformers bfloat16"] = partial(_transformers_bfloat16, folder)
    return found


def _reference_bfloat16(folder: Path) -> Model:
    return MiniMaxM2.from_pretrained(folder, dtype=torch.bfloat16)


def _transformers_bfloat16(folder: Path) -> Model:
    from minimax_m2.harness.providers.transformers import TransformersModel

    checkpoint = Checkpoint(folder)
    return TransformersModel(checkpoint.config, checkpoint.load(torch.bfloat16), dtype=torch.bfloat16)


def _scored(name: str, build: Callable[[], Model], ids: Tensor, expected: Tensor) -> ModelRow:
    try:
        model = build()
        start = time.perf_counter()
        logits = model(ids)
    except Exception as error:  # a provider's failure is its row, the others go on
        return ModelRow(provider=name, seconds=0.0, score=None, reason=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    if not bool(torch.isfinite(logits).all()):
        return ModelRow(provider=name, seconds=seconds, score=None, reason="its logits are not finite")
    return ModelRow(provider=name, seconds=seconds, score=language_score(logits, expected, ids))
