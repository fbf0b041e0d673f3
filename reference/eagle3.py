"""Which hidden states EAGLE3's draft takes, and how they stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def capture_keys(num_layers: int, *, drafted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the keys of ``model(ids, capture=...)`` that a draft was trained on.

    drafted  layers as a draft's config names them: "layer k" is what layer k puts out, the stream at the entry of layer
             k + 1, so its key is k + 1. None: (2, L // 2, L - 3), which engines take for entries as they stand

    Source: SGLang minimax_m2.py set_eagle3_layers_to_capture, which adds 1; vLLM, which does not (vllm#43671).
    Raises ValueError for a layer that the model does not have, and for models too shallow for the default.
    """
    if drafted is None:
        if num_layers < 6:
            raise ValueError(f"num_layers={num_layers} is too few for (2, L // 2, L - 3); name the drafted layers")
        return (2, num_layers // 2, num_layers - 3)
    outside = [layer for layer in drafted if not 0 <= layer < num_layers]
    if outside:
        raise ValueError(f"drafted layer {outside[0]} is outside 0..{num_layers - 1}")
    return tuple(layer + 1 for layer in drafted)


def draft_input(states: Mapping[int, Tensor], keys: Sequence[int]) -> Tensor:
    """Put states ``[..., H]`` side by side in the order of ``keys``: ``[..., len(keys) H]``."""
    return torch.cat([states[key] for key in keys], -1)
