"""Choices among the paths of an op that ``m2check tune`` measured on a device: read from a file, never made here.

``MINIMAX_M2_TUNED`` names the file, or says ``off``; without it the cache of built kernels is asked for a file of this
device and these kernels. Where none is, an op's own choice stands.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from minimax_m2.kernels.cpu.extension import cache_dir

SETTING = "MINIMAX_M2_TUNED"
SOURCES = Path(__file__).parent

_forced: dict[str, str] = {}
_watchers: list[list[tuple[str, str, tuple[str, ...]]]] = []


def chosen(op: str, bucket: str, able: Sequence[str], x: Tensor) -> str:
    """The path to take among those that can run here, of which the first is the op's own choice.

    Raises ValueError where a path is forced that cannot run, and where the named file is of another device or kernels.
    """
    for asked in _watchers:
        asked.append((op, bucket, tuple(able)))
    if op in _forced:
        if _forced[op] not in able:
            raise ValueError(f"path {_forced[op]!r} of {op} cannot run at {bucket}; these can: {', '.join(able)}")
        return _forced[op]
    choice = choices(x.device.index or 0).get(op, {}).get(bucket) if x.is_cuda else None
    return choice if choice is not None and choice in able else able[0]


@contextmanager
def forced(op: str, path: str) -> Iterator[None]:
    """Take one path of an op, whatever was chosen: what tuning measures by."""
    before = dict(_forced)
    _forced[op] = path
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@contextmanager
def watched() -> Iterator[list[tuple[str, str, tuple[str, ...]]]]:
    """Note op, bucket and able paths of every choice that calls inside ask for."""
    asked: list[tuple[str, str, tuple[str, ...]]] = []
    _watchers.append(asked)
    try:
        yield asked
    finally:
        _watchers.remove(asked)


@functools.cache
def choices(device: int) -> dict[str, dict[str, str]]:
    """Paths by op and bucket, from this device's file; read once a process."""
    setting = os.environ.get(SETTING)
    if setting == "off":
        return {}
    name = torch.cuda.get_device_name(device)
    file = Path(setting) if setting else place(name)
    if not setting and not file.exists():
        return {}
    return read(file, name)


def place(device: str) -> Path:
    """Where the choices for a device and these kernels are kept unless a file is named."""
    return cache_dir() / f"tuned-{re.sub('[^a-z0-9]+', '-', device.lower())}-{kernels_hash()}.json"


def read(file: Path, device: str) -> dict[str, dict[str, str]]:
    """Read a file of choices.

    Raises ValueError where it is of another device or of other kernels.
    """
    found = json.loads(file.read_text())
    for what, here in (("device", device), ("kernels", kernels_hash())):
        if found.get(what) != here:
            raise ValueError(
                f"{file} was tuned for {what} {found.get(what)!r}, here is {here!r}; "
                f"run m2check tune, or set {SETTING}=off"
            )
    return {op: dict(buckets) for op, buckets in found["choices"].items()}


def write(file: Path, device: str, choices: dict[str, dict[str, str]]) -> None:
    """Write a file of choices, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    found = {"device": device, "kernels": kernels_hash(), "choices": choices}
    scratch.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    scratch.rename(file)


@functools.cache
def kernels_hash() -> str:
    """Twelve digits of all sources of this folder: after any change a choice is measured anew."""
    digest = hashlib.sha256()
    for path in sorted(path for suffix in ("py", "cu", "cuh") for path in SOURCES.glob(f"*.{suffix}")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
