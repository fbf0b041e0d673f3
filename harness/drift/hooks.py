"""Engines that offer hooks only: a torch module runs once, and what its parts took and gave is kept.

A name is the path of a module. ``PATH`` is what it returned, ``PATH:output.2`` the third of several values,
``PATH:input`` what it was called with first, ``PATH:input.1`` the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimax_m2.harness.drift.naming import Naming
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.museum import load

TRANSFORMERS = "transformers"
HEARD = "m2check"
"""What transformers calls the attention that is heard."""


def recorded_modules(naming: Naming, subject: Subject, *, folder: Path) -> dict[str, Tensor]:
    """Run the modules that a naming file speaks of on the subject's tokens, all in one pass."""
    with torch.inference_mode():
        if naming.modules == TRANSFORMERS:
            model = transformers_modules(subject)
        else:
            model = _loaded(naming.path.parent / naming.modules, folder)
        wanted = naming.wanted(subject.config.num_hidden_layers)
        return heard(model, wanted, lambda: model(subject.ids[None]), told=str(naming.path))


def heard(model: nn.Module, wanted: Iterable[str], run: Callable[[], Any], *, told: str) -> dict[str, Tensor]:
    """Hook the modules of the names, ``run``, and return their tensors.

    Raises ValueError for a module that is not there, is not called, or gives no tensor there.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in dict.fromkeys(wanted):
            path, _, which = name.partition(":")
            side, _, place = (which or "output").partition(".")
            if side not in ("input", "output") or (place and not place.isdigit()):
                raise ValueError(f"{told}: {name!r}; write PATH, PATH:input or PATH:output.1")
            hooks.enter_context(_kept(_module(model, path, told), name, side, int(place or 0), found))
        run()
    silent = [name for name in dict.fromkeys(wanted) if name not in found]
    if silent:
        raise ValueError(f"{told}: no tensor came by at {silent[0]!r}: the module was not called, or has none there")
    return found


def _kept(module: nn.Module, name: str, side: str, place: int, found: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any], returned: Any) -> None:
        values = [*given, *keywords.values()] if side == "input" else returned
        values = values if isinstance(values, tuple | list) else [values]
        if place < len(values) and isinstance(values[place], Tensor):
            # Cloned: the next module may write over it.
            found[name] = values[place].detach().cpu().clone()

    return module.register_forward_hook(hook, with_kwargs=True)


def _module(model: nn.Module, path: str, told: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        near = difflib.get_close_matches(path, (name for name, _ in model.named_modules()), 1)
        more = f"; nearest is {near[0]!r}" if near else ""
        raise ValueError(f"{told}: the model has no module {path!r}{more}") from None


def _loaded(file: Path, folder: Path) -> nn.Module:
    """Run a user's file, which is code: its ``load(folder)``."""
    if not file.is_file():
        raise FileNotFoundError(f"modules file {str(file)!r} does not exist")
    function = getattr(load(file), "load", None)
    if not callable(function):
        raise ValueError(f"{file} defines no load(folder) -> torch.nn.Module")
    model = function(folder)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{file}: load(folder) returned a {type(model).__name__}, expected a torch.nn.Module")
    return model.eval()


def transformers_modules(subject: Subject) -> nn.Module:
    """Stock transformers on the subject's weights; its attention, which is a function, as a module ``core``."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    from minimax_m2.harness.providers.transformers import TransformersModel, stock_module

    stock = stock_module()

    class Core(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Callable[..., Any]) -> Any:
            return call(query, key, value)

    def attended(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **more: Any) -> Any:
        eager = partial(stock.eager_attention_forward, attention_mask=mask, **more)
        core: Any = module.core
        return core(query, key, value, lambda q, k, v: eager(module, q, k, v))

    model = TransformersModel(subject.config, subject.weights, dtype=subject.dtype).module
    for layer, weights in zip(model.model.layers, subject.weights.layers, strict=True):
        layer.self_attn.core = Core()
        # The checkpoint holds the router in float32, and transformers computes in what it is loaded in.
        layer.mlp.gate.weight.data = weights.gate.clone()
        if weights.e_score_correction_bias is not None:
            layer.mlp.e_score_correction_bias = weights.e_score_correction_bias.clone()
    # ``to(bfloat16)`` rounds the angles, too; loaded by transformers itself they stay float32.
    model.model.rotary_emb = stock.MiniMaxM2RotaryEmbedding(model.config)
    # Without a mask of its name an attention is called with none, and sees the future.
    AttentionMaskInterface.register(HEARD, eager_mask)
    AttentionInterface.register(HEARD, attended)
    model.config._attn_implementation = HEARD
    return model
