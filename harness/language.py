"""How a model reads text: cross-entropy, agreement with the float64 reference and divergence from it.

Every token of a window is predicted from the true tokens before it (teacher forcing), so one early difference does
not decide what follows, and two models are compared on the same contexts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.devices import torch_device
from minimax_m2.harness.op import Declared
from minimax_m2.harness.provider import Provider
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.table import STEPS, OpTable, op_table
from minimax_m2.reference.weights import BlockQuantized, Checkpoint, ModelWeights, Progress

WINDOWS, LENGTH = 4, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageScore:
    """What a model made of ``tokens`` predictions.

    cross_entropy  nats a token, of the true next token
    agreement      share of tokens whose likeliest token is the reference's, 0..1
    divergence     nats a token, KL(reference || model): 0 for the reference itself, never negative
    """

    cross_entropy: float
    agreement: float
    divergence: float
    tokens: int


def eval_windows(folder: str | Path, *, windows: int = WINDOWS, length: int = LENGTH) -> Tensor:
    """Return the first ``windows`` windows of the held-out text's ids, ``[windows, length]`` int64.

    ``eval_ids.json`` beside the checkpoint holds the ids of ``eval.txt``, so no tokenizer is needed.
    """
    ids = torch.tensor(json.loads((Path(folder) / "eval_ids.json").read_text(encoding="utf-8")))
    if windows * length > len(ids):
        raise ValueError(f"windows={windows} x length={length} need {windows * length} tokens; there are {len(ids)}")
    return ids[: windows * length].reshape(windows, length)


def language_score(logits: Tensor, expected: Tensor, ids: Tensor) -> LanguageScore:
    """Score ``logits [B, T, V]`` of a model against the reference's ``expected`` on ``ids [B, T]``, in float64.

    The last token of a window predicts what the window does not hold and is left out. Logits that are not finite
    give scores that are not finite, never a plausible number.
    """
    truth = ids[:, 1:].flatten()
    log_p, log_q = (
        torch.log_softmax(x[:, :-1].flatten(0, 1).to(torch.float64), -1) for x in (expected, logits.to(expected.device))
    )
    return LanguageScore(
        cross_entropy=float(-log_q.gather(-1, truth[:, None]).mean()),
        agreement=float((log_q.argmax(-1) == log_p.argmax(-1)).to(torch.float64).mean()),
        # Rounding may leave a sum of -1e-17 where the two are equal.
        divergence=float((log_p.exp() * (log_p - log_q)).sum(-1).mean().clamp(min=0.0)),
        tokens=len(truth),
    )


@lru_cache(2)
def reference_logits(folder: str | Path, *, windows: int = WINDOWS, length: int = LENGTH) -> Tensor:
    """Return the float64 reference's logits on ``eval_windows``, computed once a process."""
    return MiniMaxM2.from_pretrained(folder)(eval_windows(folder, windows=windows, length=length))


def score_model(
    model: Callable[[Tensor], Tensor], folder: str | Path, *, windows: int = WINDOWS, length: int = LENGTH
) -> LanguageScore:
    """Score anything that maps ids ``[B, T]`` to logits ``[B, T, V]``, such as ``provider_model`` gives."""
    ids = eval_windows(folder, windows=windows, length=length)
    expected = reference_logits(folder, windows=windows, length=length)
    return language_score(model(ids), expected, ids)


def provider_table(provider: Provider) -> OpTable:
    """Fill the model's table from a provider; what it does not offer is the reference's, as ``sources`` tells."""
    found = {step: provider.functions(step) for step in STEPS}
    return op_table({step: op for step, op in found.items() if op is not None}, name=provider.name)


def provider_model(
    provider: Provider,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    keep_quantized: bool = False,
    progress: Progress | None = None,
) -> MiniMaxM2:
    """Build the checkpoint's model on a provider's ops and device; its table of cosines is as the contract names it."""
    declared = _field(provider.contract, "qk_norm_rope", "cos_sin") or _field(provider.contract, "rope", "cos_sin")
    checkpoint = Checkpoint(folder)
    weights = checkpoint.load(dtype, keep_quantized=keep_quantized, progress=progress)
    return MiniMaxM2(
        checkpoint.config,
        placed(weights, torch_device(provider.device)),
        ops=provider_table(provider),
        rope_dtype=getattr(torch, declared) if declared else None,
    )


def placed(weights: ModelWeights, device: str) -> ModelWeights:
    """The same weights on a device; those that are there already are not copied."""
    whole = {f.name: _placed(getattr(weights, f.name), device) for f in fields(weights) if f.name != "layers"}
    layers = [
        replace(layer, **{f.name: _placed(getattr(layer, f.name), device) for f in fields(layer)})
        for layer in weights.layers
    ]
    return replace(weights, layers=layers, **whole)


def _placed(value: Any, device: str) -> Any:
    if isinstance(value, BlockQuantized):
        return value._replace(weight=value.weight.to(device), scale=value.scale.to(device))
    return None if value is None else value.to(device)


def _field(contract: Mapping[str, Declared], op: str, name: str) -> str | None:
    fields = contract.get(op, {})
    # A contract that hangs on the case names no table for all of them.
    declared = None if callable(fields) else fields.get(name)
    return declared if isinstance(declared, str) and isinstance(getattr(torch, declared, None), torch.dtype) else None
