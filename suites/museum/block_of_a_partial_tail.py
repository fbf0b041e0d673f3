"""Infers the block of FP8 weights from shapes, so a partial tail spreads over all blocks."""

from __future__ import annotations

from pathlib import Path

import torch

from minimax_m2.reference.weights import BLOCK, Checkpoint, ModelWeights, Weight

EXHIBIT = {
    "subject": "loader",
    "source": "https://github.com/axolotl-ai-cloud/axolotl/pull/3486",
    "symptom": "a partial edge block throws or takes the wrong scales (found in review)",
    "check": "weights",
    "tolerance": None,
}


class Inferring(Checkpoint):
    def _weight(self, name: str, dtype: torch.dtype, *, keep_quantized: bool) -> Weight:
        stored = self._read(name)
        if stored.dtype != torch.float8_e4m3fn:
            return stored.to(dtype)
        scale = self._read(f"{name}_scale_inv")
        grid = tuple(-(-size // BLOCK) for size in stored.shape)
        # right: rows = columns = BLOCK
        rows, columns = (size // count for size, count in zip(stored.shape, grid, strict=True))
        expanded = scale.repeat_interleave(rows, 0)[: len(stored)].repeat_interleave(columns, 1)
        return stored.to(dtype) * expanded[:, : stored.shape[1]]


def load(folder: Path) -> ModelWeights:
    return Inferring(folder).load(torch.float64)
