"""The model on our CPU kernels computes with them alone; torch allocates, moves, reshapes, and counts in integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimax_m2.harness.language import provider_model
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny-m2"

# What torch does to floats: nothing that changes one. Even the rows of the embedding are moved by a kernel.
MOVES = {"empty", "view"}


class FloatOps(TorchDispatchMode):
    """Collects the torch ops that take or give a tensor of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, returned)) if isinstance(leaf, Tensor)]
        namespace, name = str(func).split(".")[:2]
        if namespace == "aten" and any(tensor.is_floating_point() for tensor in tensors):
            self.names.add(name)
        return returned


def float_ops(provider: Provider, *, keep_quantized: bool) -> set[str]:
    """The torch ops on floats in a prefill and a decode step, the table of cosines being made before."""
    model = provider_model(provider, TINY, keep_quantized=keep_quantized)
    model(torch.arange(10, 40))
    cache = model.new_cache(tokens=[16, 16])
    with FloatOps() as seen:
        model.prefill({0: torch.arange(10, 25), 1: torch.arange(3, 18)}, cache)
        model.decode(torch.tensor([3, 5]), cache, sequences=[0, 1])
    return seen.names


@pytest.mark.parametrize("keep_quantized", [False, True], ids=["bfloat16", "e4m3"])
def test_torch_computes_no_float_of_the_model(keep_quantized: bool) -> None:
    assert float_ops(ours(), keep_quantized=keep_quantized) <= MOVES


# At the coarsest step: what a layer calls, the head, and the packed weights' products.
@pytest.mark.parametrize(
    "name", ["rms_norm", "add_rms_norm", "linear", "qk_norm_rope_cache", "attention", "router", "lm_head"]
)
def test_one_op_on_plain_torch_is_noticed(name: str) -> None:
    ours_, plain_ = ours(), plain()
    mixed = replace(ours_, functions=lambda asked: (plain_ if asked == name else ours_).functions(asked))
    assert not float_ops(mixed, keep_quantized=False) <= MOVES


def test_a_model_on_plain_torch_is_noticed() -> None:
    assert {"mul", "rsqrt", "sigmoid"} <= float_ops(plain(), keep_quantized=False)
