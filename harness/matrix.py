"""Cells: op x provider x device x variant; which must execute, which did, and which are not here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from minimax_m2.harness.devices import DEVICES
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider

# Tiles are a variant of dense products only: an op whose file does not name that kind expects what the kind below has.
# Every Triton kernel runs from sm_80 on: one table serves all GPUs.
BELOW = {"amx": "avx512_bf16", "sm_80": "sm_90", "sm_100": "sm_90", "sm_120": "sm_90"}
ARCHITECTURES = (120, 100, 90, 80)


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One square of the matrix."""

    op: str
    provider: str
    device: str
    variant: str = ""

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.op, self.provider, self.device, self.variant) if part)

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read an ``id`` back; a provider's name may hold hyphens, as its file's name may."""
        parts = text.split("-")
        device = len(parts) - (1 if parts[-1] in DEVICES else 2)
        return cls(parts[0], "-".join(parts[1:device]), *parts[device:])


def cells(providers: Iterable[Provider], ops: Iterable[str] = ()) -> list[Cell]:
    """Every cell that these providers fill, by op."""
    wanted = list(ops) or list(all_ops())
    return [
        Cell(op, provider.name, provider.device, variant)
        for op in wanted
        for provider in providers
        if provider.offers(op)
        for variant in provider.variants_of(op)
    ]


def expected_dir() -> Path | None:
    """``suites/expected`` of the checkout this package runs from, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "suites" / "expected"
    return folder if folder.is_dir() else None


def machine_kind(device: str) -> str:
    """What decides which cells a machine must run: the best instruction set of a CPU, a GPU's architecture.

    Ascend's cards, as far as our kernels go, differ in their number of cores alone.
    """
    if device == "gpu":
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{next(known for known in ARCHITECTURES if known <= 10 * major + minor)}"
    if device == "npu":
        return "ascend"
    if device != "cpu":
        raise ValueError(f"device={device!r} is unknown; use one of {', '.join(DEVICES)}")
    from minimax_m2.harness.providers.ours import ours

    return ours("cpu").variants[-1]


def due(folder: Path, executed: set[Cell]) -> set[Cell]:
    """The cells that this machine must run: its CPU's, and those of a GPU or NPU that the run reached."""
    devices = {"cpu"} | ({cell.device for cell in executed} & set(DEVICES))
    return {cell for device in devices for cell in must_execute(folder, device, machine_kind(device))}


def must_execute(folder: Path, device: str, kind: str) -> set[Cell]:
    """The cells that ``<folder>/<op>.toml`` names for a machine of this kind.

    Raises ValueError for a file that is no op's, or that says nothing about this kind of machine.
    """
    found: set[Cell] = set()
    ops = all_ops()
    for path in sorted(folder.glob("*.toml")):
        if path.stem not in ops and path.stem not in {op.stem for op in ops.values()}:
            raise ValueError(f"{path.name} names no op; known: {', '.join(ops)}")
        declared = tomllib.loads(path.read_text())
        kinds = declared.get(device, {})
        wanted = kinds.get(kind, kinds.get(BELOW.get(kind, "")))
        if wanted is None:
            if device in declared.get("absent", {}) or (device == "npu" and path.stem not in _built(device)):
                continue
            raise ValueError(f"{path.name} has no table [{device}.{kind}]; add it, or [absent] {device} = 'reason'")
        names = [op.name for op in ops.values() if (op.stem or op.name) == path.stem]
        for provider, variants in wanted.items():
            found |= {Cell(name, provider, device, variant) for name in names for variant in variants}
    return found


def _built(device: str) -> frozenset[str]:
    from minimax_m2.harness.providers.ours import stems

    return stems(device)


def lost(expected: set[Cell], executed: set[Cell]) -> list[Cell]:
    """Cells that had to run and did not."""
    return sorted(expected - executed)
