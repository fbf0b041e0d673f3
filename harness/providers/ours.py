"""Our kernels of one device: ``minimax_m2.kernels.<device>.<op>``, found by name, compiled on first use."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from minimax_m2.harness.op import Declared, Op, all_ops
from minimax_m2.harness.provider import Provider

# Partial sums that every long sum of a CPU op is made in, on the least of its instruction sets: a vector of portable
# code (row_products.h), four of them for sums of squares (row_vectors.h, qk_norm_row.h). The others add some terms one
# after the other: linear's tiles, experts, fp8_linear and attention's values.
LANES = {
    **dict.fromkeys(("lm_head", "router_gemm", "router"), 4),
    **dict.fromkeys(("rms_norm", "add_rms_norm", "add_rms_norm_quant"), 16),
}


def ours(device: str = "cpu") -> Provider:
    """The kernels of ``device``; on a CPU one variant an instruction set that this machine runs."""
    if device == "cpu":
        isa = importlib.import_module("minimax_m2.kernels.cpu.isa")
        variants, enter, lacks = tuple(isa.available()), isa.forced, _lacks
    else:
        variants, enter, lacks = ("",), _no_variant, _lacks_none
    return Provider(
        name="ours",
        device=device,
        functions=lambda name: function_of(device, name),
        contract=Contracts(device),
        variants=variants,
        enter=enter,
        lacks=lacks,
        refuses=refusals(device),
    )


def refusals(device: str) -> Callable[[Op, Any], str | None]:
    """What a device's kernels do not compute: a module's ``refused``, reasons by field of a case and its value."""

    def refuses(op: Op, case: Any) -> str | None:
        stem = stem_of(op.name)
        refused = getattr(_module(device, stem), "refused", {}) if stem in stems(device) else {}
        return next((values[case[name]] for name, values in refused.items() if case.get(name) in values), None)

    return refuses


def cpu_extension() -> ModuleType:
    """What builds the CPU kernels' libraries."""
    return importlib.import_module("minimax_m2.kernels.cpu.extension")


def gpu_choices() -> ModuleType:
    """What holds the tuned choices among the GPU kernels' code paths."""
    return importlib.import_module("minimax_m2.kernels.gpu.tuned")


def gpu_toolkit() -> ModuleType:
    """What builds the GPU kernels of CUDA C++."""
    return importlib.import_module("minimax_m2.kernels.gpu.toolkit")


def gpu_unit(stem: str) -> ModuleType:
    """A module of the GPU kernels that is no op's."""
    return importlib.import_module(f"minimax_m2.kernels.gpu.{stem}")


def tiled_ops() -> tuple[str, ...]:
    """Our CPU ops with a tile unit: the only ones that have the variant ``amx``."""
    return tuple(op for op in all_ops() if cpu_extension().has_tiles(stem_of(op)))


def instruction_set_table() -> dict[str, str]:
    """Every CPU variant and what it lacks here, empty where it runs; ``in force`` names the one that does."""
    isa = importlib.import_module("minimax_m2.kernels.cpu.isa")
    flags = isa.cpu_flags()
    table = {name: ", ".join(sorted(needed - flags)) for name, needed in isa.REQUIRED.items()}
    return table | {f"in force: {isa.current()}": ""}


def memory_nodes() -> tuple[int, ...]:
    """The memory nodes among which packed weights are shared, by Linux's number."""
    found: tuple[int, ...] = importlib.import_module("minimax_m2.kernels.cpu.node_shares").nodes()
    return found


def dispatch_predicates() -> dict[str, str]:
    """The choices between code paths that a CPU launch makes, as ``kernels/cpu/dispatch.h`` writes them."""
    source = cpu_extension().SOURCE_DIR / "dispatch.h"
    found = re.findall(r"^constexpr bool (\w+\(.*?\)) \{ return (.*); \}$", source.read_text(), re.MULTILINE)
    return dict(found)


def _lacks(op: str, variant: str) -> bool:
    return variant == "amx" and op not in tiled_ops()


def _lacks_none(op: str, variant: str) -> bool:
    return False


def _no_variant(variant: str) -> AbstractContextManager[None]:
    return nullcontext()


@cache
def stems(device: str) -> frozenset[str]:
    """File stems of a device's kernels."""
    package = importlib.import_module(f"minimax_m2.kernels.{device}")
    return frozenset(info.name for info in pkgutil.iter_modules(package.__path__))


def stem_of(name: str) -> str:
    """The file that holds a function: ``routing`` for ``routing_out`` and ``pack_routing``."""
    ops = all_ops()
    base = name.removesuffix("_out")
    if base in ops:
        return ops[base].stem or base
    return base.removeprefix("un").removeprefix("pack_")


def function_of(device: str, name: str) -> Callable[..., Any] | None:
    """One function of our kernels, or None where the op is not yet built for the device."""
    stem = stem_of(name)
    if stem not in stems(device):
        return None
    return getattr(_module(device, stem), name, None)


def _module(device: str, stem: str) -> ModuleType:
    return importlib.import_module(f"minimax_m2.kernels.{device}.{stem}")


class Contracts(Mapping[str, Declared]):
    """The contract each kernel module declares: ``contract`` for the op of its name, or by op in a stem of many.

    On a CPU the lanes of ``LANES`` come with it.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def __getitem__(self, op: str) -> Declared:
        stem = stem_of(op)
        declared = getattr(_module(self.device, stem), "contract", {}) if stem in stems(self.device) else {}
        if callable(declared):
            return declared
        nested = declared.get(op)
        own = nested if isinstance(nested, Mapping) else {} if _by_op(declared) else declared
        return {"lanes": LANES[op], **own} if self.device == "cpu" and op in LANES else own

    def __iter__(self) -> Iterator[str]:
        return iter(op for op in all_ops() if stem_of(op) in stems(self.device))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _by_op(declared: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in declared.values())


BUILD = "MINIMAX_M2_BUILD"


def of_build() -> Provider:
    """Our CPU kernels as another build has them: those below the folder ``MINIMAX_M2_BUILD``.

    For a process of its own, before any of this build's kernels is imported.
    """
    name = "minimax_m2.kernels"
    if name in sys.modules:
        raise RuntimeError(f"{name} is imported already; another build's kernels need a process of their own")
    package = ModuleType(name)
    package.__path__ = [str(Path(os.environ[BUILD]) / "kernels")]
    sys.modules[name] = package
    return ours("cpu")
