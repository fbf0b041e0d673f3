"""Who answers a call of a model's step: the float64 formula, a right model that rounds at random, a candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.devices import torch_device
from minimax_m2.harness.drift.calls import Call, described, only_active
from minimax_m2.harness.drift.candidate import Candidate, Place
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import shaped_as, values_of

Answer = Callable[[Call], Any]
"""Gives the model what a step returns, and writes what that writes."""


Cast = Callable[[Tensor, torch.dtype], Tensor]


def exact_answers(call: Call) -> Any:
    """The float64 formula, each result rounded once to the model's dtype; nothing is where that is float64."""
    return _answered(call, lambda x, dtype: x.to(dtype))


def formula(call: Call) -> Any:
    """What the float64 formula gives, not rounded."""
    return _answered(call, lambda x, dtype: x)


def right_answers(seed: int) -> Answer:
    """The float64 formula, each result rounded to the model's dtype up or down at random, without bias."""
    generator = torch.Generator().manual_seed(seed)
    return lambda call: _answered(call, lambda x, dtype: stochastic(x, dtype, generator))


def _answered(call: Call, cast: Cast) -> Any:
    small, op = only_active(call), call.op
    widened = {name: _doubled(op, value) for name, value in small.arguments.items()}
    returned = op.bind(op.reference, widened)()
    for name in op.mutates:
        target: Tensor = call.arguments[name]
        if target is not widened[name]:
            target.copy_(cast(widened[name], target.dtype))
    lead = next(v for v in call.arguments.values() if isinstance(v, Tensor) and v.is_floating_point()).dtype
    names = [name for name in op.outputs if name not in op.mutates]
    found = (
        cast(v, _kind(op, name, lead)) if v.is_floating_point() else v
        for v, name in zip(values_of(returned), names, strict=True)
    )
    return shaped_as(returned, found)


def _kind(op: Op, output: str, lead: torch.dtype) -> torch.dtype:
    """The dtype of an output in a model of the dtype ``lead``."""
    named = getattr(torch, op.outputs[output], None)
    return named if isinstance(named, torch.dtype) and lead != torch.float64 else lead


def _doubled(op: Op, value: Any) -> Any:
    if isinstance(value, Pack):
        return getattr(op.module, value.function)(**{k: _doubled(op, v) for k, v in value.arguments.items()})
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def answers_of(
    candidate: Candidate, *, rest: Answer = exact_answers, where: Callable[[Place], bool] = lambda place: True
) -> Answer:
    """The candidate's own steps ``where`` it is asked for; ``rest`` answers elsewhere and what it does not offer."""
    packed: dict[tuple[int, str, str], Any] = {}

    def laid_out(call: Call, pack: Pack, provider: Provider) -> Any:
        key = (call.layer, call.step, provider.name)
        if key not in packed:
            function = provider.functions(pack.function)
            if function is None:
                raise ValueError(f"provider {provider.name!r} offers {call.op.name} but not {pack.function}")
            device = torch_device(provider.device)
            packed[key] = function(**{name: _moved(value, device) for name, value in pack.arguments.items()})
        return packed[key]

    def answers(call: Call) -> Any:
        provider, function = candidate.at(call.place), candidate.function(call.op.name, call.place)
        if function is None or not where(call.place) or provider.refuses(call.op, described(call)) is not None:
            return rest(call)
        device = torch_device(provider.device)
        arguments = {
            name: laid_out(call, value, provider) if isinstance(value, Pack) else _moved(value, device)
            for name, value in call.arguments.items()
        }
        with provider.enter(candidate.variant_of(provider)):
            returned = call.op.bind(function, arguments)()
        for name in call.op.mutates:
            if arguments[name] is not call.arguments[name]:
                call.arguments[name].copy_(arguments[name])
        return shaped_as(returned, (_moved(v, "cpu") for v in values_of(returned)))

    return answers


def _moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def stochastic(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round float64 values to one of their two neighbours in ``dtype``, the nearer more often: no bias."""
    if dtype == torch.float64:
        return x
    near = x.to(dtype)
    error = x - near.double()
    beyond = torch.nextafter(near.float(), torch.where(error > 0, torch.inf, -torch.inf).float())
    if dtype != torch.float32:
        bits = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        spacing = (beyond - near.float()) * bits
        beyond = near.float() + spacing
    other = beyond.to(dtype)
    width = (other.double() - near.double()).abs()
    share = torch.where(width > 0, error.abs() / width.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    chance = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return torch.where(chance < share, other, near)
