"""A provider run otherwise: its calls shared by ranks, or computed in another dtype than the model's.

Both are providers like any other, so a place of a model may be theirs and the next one's not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.parallel_ops import SPLIT_OPS, split_over
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import shaped_as, values_of
from minimax_m2.reference.communicator import Communicator, Threads

# What every rank computes whole. The cache is written beside a split norm, not within one.
REPLICATED = ("rms_norm", "add_rms_norm", "kv_cache", "router", "router_gemm", "routing")
# What engines keep in float32 whatever the model is loaded in.
KEPT = frozenset({"cos_sin", "stats", "logits", "bias", "weights", "scale", "w13_scale", "w2_scale"})
ROUTERS = ("router", "router_gemm")


def over_ranks(provider: Provider, tp: int) -> Provider:
    """The provider's kernels, each call shared by ``tp`` simulated ranks that talk over ``Threads``.

    Raises ValueError for fewer than two ranks.
    """
    if tp < 2:
        raise ValueError(f"{tp} ranks share nothing; write @tp2 or more")
    alone = split_over(provider, tp=tp)

    def functions(name: str) -> Callable[..., Any] | None:
        if name not in SPLIT_OPS or not provider.offers(name):
            return provider.functions(name) if name in REPLICATED else alone.functions(name) if _packs(name) else None

        def shared(*given: Any, **keywords: Any) -> Any:
            def rank(voice: Communicator) -> Any:
                function = split_over(provider, tp=tp, voice=voice).functions(name)
                assert function is not None, name
                # A mode of torch's is a thread's own.
                with torch.inference_mode():
                    return function(*given, **keywords)

            return Threads(tp).run(rank)[0]

        return shared

    return replace(provider, name=f"{provider.name}@tp{tp}", functions=functions)


def _packs(name: str) -> bool:
    return name.startswith("pack_")


def in_dtype(provider: Provider, dtype: torch.dtype) -> Provider:
    """The provider's kernels in ``dtype``: what the model hands over is rounded to it, what it gets back to its own."""

    def functions(name: str) -> Callable[..., Any] | None:
        function = provider.functions(name)
        return None if function is None else _recast(name, function, dtype)

    named = str(dtype).removeprefix("torch.")
    return replace(provider, name=f"{provider.name}@{named}", functions=functions)


def _recast(name: str, function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    op = all_ops().get(name)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and _is_wide(value) else value

    def packing(*given: Any, **keywords: Any) -> Any:
        return function(*map(cast, given), **{k: v if k in KEPT else cast(v) for k, v in keywords.items()})

    if op is None:
        return packing
    names = op.positional()

    def call(*positional: Any, **keywords: Any) -> Any:
        own = dict(zip(names, positional, strict=False)) | keywords
        kept = KEPT | ({"weight"} if name in ROUTERS else frozenset())
        given = {k: v if k in kept else cast(v) for k, v in own.items()}
        model = next(v.dtype for k, v in own.items() if k not in kept and isinstance(v, Tensor) and _is_wide(v))
        returned = op.bind(function, given)()
        for written in op.mutates:
            if given[written] is not own[written]:
                own[written].copy_(given[written])
        outputs = [output for output in op.outputs if output not in op.mutates]
        wanted = own.get("out_dtype") or model
        found = (
            v.to(wanted) if _is_wide(v) and not isinstance(getattr(torch, op.outputs[o], None), torch.dtype) else v
            for v, o in zip(values_of(returned), outputs, strict=True)
        )
        return shaped_as(returned, found)

    return call


def _is_wide(x: Tensor) -> bool:
    return x.is_floating_point() and x.itemsize > 1
