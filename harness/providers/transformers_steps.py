"""transformers' whole model, a step at a time, as it runs fastest: SDPA, and experts by a named implementation.

Compiled, its cache is static, as torch.compile wants it: a dynamic one would compile anew at every length. The prompt
of a decode is run without the compiler, as transformers' own generate does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.providers.transformers import TransformersModel
from minimax_m2.harness.timed_models import config_of, ids_of, weights_of


class TransformersSteps:
    """Prefill or decode of a case's model; ``experts`` names transformers' implementation of them."""

    def __init__(self, case: Case, *, experts: str, is_compiled: bool) -> None:
        self._ids, self._is_decode, self._held = ids_of(case), case["phase"] == "decode", case.number("S")
        self._module = TransformersModel(config_of(case), weights_of(case), dtype=torch.bfloat16).module
        self._module.set_attn_implementation("sdpa")
        self._module.set_experts_implementation(experts)
        self._run: Any = torch.compile(self._module) if is_compiled else self._module
        self._is_static = is_compiled
        self._cache = self._new_cache()
        if self._is_decode:
            self._module(self._ids[0, :, :-1], past_key_values=self._cache, logits_to_keep=1)

    def step(self, draw: int) -> Tensor:
        ids = self._ids[draw, :, -1:] if self._is_decode else self._ids[draw]
        logits: Tensor = self._run(ids, past_key_values=self._cache, logits_to_keep=1).logits
        self._forget()
        return logits[:, -1]

    def _new_cache(self) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self._module.config
        if not self._is_static:
            return DynamicCache(config=config)
        cache = StaticCache(config=config, max_cache_len=self._ids.shape[2])
        cache.early_initialization(
            batch_size=self._ids.shape[1], num_heads=config.num_key_value_heads, head_dim=config.head_dim,
            dtype=torch.bfloat16, device=torch.device("cpu"),
        )  # fmt: skip
        return cache

    def _forget(self) -> None:
        """Put the cache's length back; what lies beyond it is masked until it is written again."""
        held = self._held if self._is_decode else 0
        if self._is_static:
            for layer in self._cache.layers:
                layer.cumulative_length.fill_(held)
        elif self._is_decode:
            self._cache.crop(-1)
        else:
            self._cache = self._new_cache()
