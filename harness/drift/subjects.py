"""Models and tokens to look for drift in: tiny-m2, a checkpoint on disk, drawn weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.language import eval_windows
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.harness.timed_models import LAYER
from minimax_m2.reference.weights import Checkpoint

# Two layers of MiniMax-M2's widths, with as few experts as a CPU judges in seconds.
TOY = replace(LAYER, num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2, vocab_size=256)


def checkpoint_subject(
    folder: Path | None, tokens: Path | None, *, length: int, keep_quantized: bool = False, decoded: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Subject:  # fmt: skip
    """A folder's model in ``dtype``, tiny-m2's where none is named, on a file's ids or the folder's own text.

    Raises ValueError where there is neither file nor text, or tiny-m2 is not here.
    """
    where = folder or tiny_m2()
    if where is None:
        raise ValueError("tiny-m2 is not here: run from a checkout, or name a checkpoint by --model")
    checkpoint = Checkpoint(where)
    if tokens is not None:
        ids = read_ids(tokens, checkpoint.config.vocab_size)[:length]
    elif (where / "eval_ids.json").is_file():
        ids = eval_windows(where, windows=1, length=length)[0]
    else:
        raise ValueError(f"{where} holds no eval_ids.json; name a file of ids by --tokens")
    return Subject(
        name="tiny-m2" if folder is None else where.name,
        config=checkpoint.config,
        weights=checkpoint.load(dtype, keep_quantized=keep_quantized),
        ids=ids,
        decoded=min(decoded, len(ids) - 1),
    )


def read_ids(path: Path, vocab_size: int) -> Tensor:
    """A file's token ids: a JSON list of integers. Raises ValueError naming what is none, or outside the vocabulary."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON list of token ids: {error}") from error
    if not isinstance(found, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
        raise ValueError(f"{path} is no JSON list of token ids: expected [17, 4, ...]")
    outside = [i for i in found if not 0 <= i < vocab_size]
    if outside or len(found) < 2:
        told = f"id {outside[0]} is outside 0..{vocab_size - 1}" if outside else f"{len(found)} ids; expected 2 or more"
        raise ValueError(f"{path}: {told}")
    return torch.tensor(found)


def toy_subject(*, length: int = 24, seed: int = 3) -> Subject:
    """Two layers of MiniMax-M2's widths with drawn weights, on drawn tokens."""
    ids = torch.randint(TOY.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    return Subject(name="m2-width", config=TOY, weights=random_weights(TOY, seed=seed, dtype=torch.bfloat16), ids=ids)


def tokens_id(ids: Tensor) -> str:
    """Eight hex digits that tell token sequences apart."""
    return hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()[:8]
