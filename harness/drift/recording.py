"""What an engine that cannot be called left of one pass: its tensors under our names, checked one by one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimax_m2.harness.drift.hooks import recorded_modules
from minimax_m2.harness.drift.naming import LAYER, TAPS, Naming, read_naming, sizes_of
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.reference.config import MiniMaxM2Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Tensors of one prefill of all tokens, by tap and layer; taps beside the layers stand at layer 0."""

    naming: Naming
    tensors: Mapping[tuple[str, int], Tensor]

    @property
    def name(self) -> str:
        return self.naming.name

    def has(self, *taps: str) -> bool:
        """Whether all of these taps were recorded."""
        return all(tap in self.naming.taps for tap in taps)

    def at(self, tap: str, layer: int = 0) -> Tensor:
        return self.tensors[tap, layer]


def recording_of(path: Path, subject: Subject, *, folder: Path) -> Recording:
    """Read the dump that a naming file speaks of, or run its modules, whose checkpoint is ``folder``.

    Raises ValueError naming what is missing, of another shape, or not the model's.
    """
    naming = read_naming(path)
    if naming.dump:
        return recorded(naming, _dumped(naming, subject.config), subject)
    return recorded(naming, recorded_modules(naming, subject, folder=folder), subject)


def recorded(naming: Naming, found: Mapping[str, Tensor], subject: Subject) -> Recording:
    """Hold every tensor against the model: names, shapes, dtypes, tokens."""
    config, count = subject.config, len(subject.ids)
    tensors: dict[tuple[str, int], Tensor] = {}
    for tap in naming.taps:
        for layer in range(config.num_hidden_layers if TAPS[tap].in_layer else 1):
            parts = [_found(naming, found, name, tap, layer) for name in naming.names(tap, layer)]
            where = _where(naming, tap, layer)
            tensors[tap, layer] = _shaped(naming, parts, tap, where, count=count, config=config, dtype=subject.dtype)
    refuse_more_layers(naming, found, config.num_hidden_layers)
    for (tap, layer), ids in tensors.items():
        if tap == "routing_ids" and bool(((ids < 0) | (ids >= config.num_local_experts)).any()):
            told = f"spans {int(ids.min())}..{int(ids.max())}; experts are 0..{config.num_local_experts - 1}"
            raise ValueError(f"{_where(naming, tap, layer)} {told}")
    if "ids" in naming.taps and not torch.equal(tensors["ids", 0], subject.ids):
        raise ValueError(f"{naming.path}: the dump's ids are not the tokens asked for; name its own by --tokens")
    return Recording(naming=naming, tensors=tensors)


def refuse_more_layers(naming: Naming, names: Collection[str], layers: int) -> None:
    """Raise ValueError where the engine has a layer behind the model's last."""
    for tap, patterns in naming.taps.items():
        beyond = [p.replace(LAYER, str(layers)) for p in patterns if TAPS[tap].in_layer]
        if any(name in names for name in beyond):
            raise ValueError(f"{naming.path}: {beyond[0]!r} is there, but the model's layers are 0..{layers - 1}")


def _dumped(naming: Naming, config: MiniMaxM2Config) -> dict[str, Tensor]:
    """The tensors of a dump that are spoken of."""
    file = naming.path.parent / naming.dump
    if not file.is_file():
        raise FileNotFoundError(f"{naming.path}: dump {str(file)!r} does not exist")
    wanted = {*naming.wanted(config.num_hidden_layers)}
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            refuse_more_layers(naming, names, config.num_hidden_layers)
            return {name: opened.get_tensor(name) if name in wanted else torch.empty(0) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _where(naming: Naming, tap: str, layer: int) -> str:
    place = f"{tap} of layer {layer}" if TAPS[tap].in_layer else tap
    return f"{naming.path}: {' + '.join(naming.names(tap, layer))} ({place})"


def _found(naming: Naming, found: Mapping[str, Tensor], name: str, tap: str, layer: int) -> Tensor:
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        told = f"nearest is {near[0]!r}" if near else f"it holds {len(found)} others"
        place = f"{tap} of layer {layer}" if TAPS[tap].in_layer else tap
        raise ValueError(f"{naming.path}: {naming.dump or naming.modules} has no {name!r} ({place}); {told}")
    return found[name]


def _shaped(
    naming: Naming, parts: list[Tensor], tap: str, where: str, *, count: int, config: MiniMaxM2Config,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``[T, ...]`` as the tap has it; a batch of one is dropped, parts stand side by side, heads may lie flat."""
    known, sizes = sizes_of(config), TAPS[tap].sizes
    shape = (count, *(known[name] for name in sizes))
    rows = [_rows(part, count, heads_first=tap in naming.heads_first) for part in parts]
    whole = torch.cat([x.flatten(1) for x in rows], -1) if len(rows) > 1 and all(map(len, rows)) else rows[0]
    if tuple(whole.shape) not in (shape, (count, prod(shape[1:]))):
        seen = ", ".join(str(list(part.shape)) for part in parts)
        raise ValueError(f"{where} has shape {seen}; expected [{', '.join(['T', *sizes])}] = {list(shape)}")
    return _in_dtype(whole.reshape(shape), TAPS[tap].dtype, where, dtype)


def _rows(x: Tensor, count: int, *, heads_first: bool) -> Tensor:
    """One row a token, out of a batch of one; nothing where there is none."""
    if heads_first and x.ndim >= 3:
        x = x.transpose(-3, -2)
    x = x[0] if x.ndim > 1 and len(x) == 1 else x
    return x if x.ndim and len(x) == count else torch.empty(0)


def _in_dtype(x: Tensor, named: str | None, where: str, model: torch.dtype) -> Tensor:
    """The same numbers in the dtype that the tap is compared in; ValueError where that cannot hold them."""
    dtype = getattr(torch, named) if named else model
    cast = x.to(dtype)
    if not torch.equal(cast.to(x.dtype).nan_to_num(), x.nan_to_num()):
        told = str(dtype).removeprefix("torch.")
        raise ValueError(f"{where} is {str(x.dtype).removeprefix('torch.')} and holds numbers that {told} cannot")
    return cast.contiguous()
