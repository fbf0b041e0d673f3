"""A provider: somebody's implementation of some ops, as a module or object with callables of the ops' names."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from minimax_m2.harness.op import Declared, Op, all_ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An implementation on one device.

    functions  resolves an op's name to a callable, or None where the provider does not offer it
    contract   where its kernels round, by op, or a function of the case that says so; what it leaves out takes the
               op's default
    variants   names of the code paths to judge apart (instruction sets); ``enter`` selects one
    lacks      whether an op does without one of the variants
    source     what to write after ``--provider`` to get it again
    refuses    a reason why an op cannot run on a case, or None
    """

    name: str
    device: str
    functions: Callable[[str], Callable[..., Any] | None]
    contract: Mapping[str, Declared] = field(default_factory=dict)
    variants: tuple[str, ...] = ("",)
    enter: Callable[[str], AbstractContextManager[Any]] = lambda variant: nullcontext()
    lacks: Callable[[str, str], bool] = lambda op, variant: False
    source: str = ""
    refuses: Callable[[Op, Any], str | None] = lambda op, case: None

    def offers(self, op: str) -> bool:
        return self.functions(op) is not None

    def function(self, name: str) -> Callable[..., Any]:
        """The callable of a name. Raises ValueError where it is not offered."""
        found = self.functions(name)
        if found is None:
            raise ValueError(f"provider {self.name!r} does not offer {name}")
        return found

    def variants_of(self, op: str) -> tuple[str, ...]:
        return tuple(variant for variant in self.variants if not self.lacks(op, variant))


def from_file(path: str | Path, *, device: str = "cpu") -> Provider:
    """Load a ``.py`` file as a provider. The file is code and runs here: read it first if it is not yours.

    Raises FileNotFoundError, or ValueError where it cannot be loaded, offers nothing, or declares a contract for an op
    that it does not offer.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"provider file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(f"provider_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"provider {str(path)!r} is no Python file; give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        place = f"{path}, line {at[-1]}," if at else str(path)
        raise ValueError(f"provider {place} could not be loaded: {type(error).__name__}: {error}") from error
    return from_object(module, name=file.stem, device=device, source=str(path))


def from_object(module: ModuleType | object, *, name: str, device: str = "cpu", source: str = "") -> Provider:
    """See a module or object as a provider."""

    def functions(op: str) -> Callable[..., Any] | None:
        found = getattr(module, op, None)
        return found if callable(found) else None

    offered = [op for op in all_ops() if functions(op) is not None]
    if not offered:
        raise ValueError(f"provider {name!r} offers no op; define functions named as in {', '.join(all_ops())}")
    contract = getattr(module, "contract", {})
    if not isinstance(contract, Mapping) or not all(isinstance(f, Mapping) or callable(f) for f in contract.values()):
        raise ValueError(
            f"provider {name!r} has contract={contract!r}; write {{op: {{field: value}}}}, or a function of the case"
        )
    for op in contract:
        if op not in offered:
            raise ValueError(f"provider {name!r} declares a contract for {op!r}, which it does not offer ({offered})")
    return Provider(name=name, device=device, functions=functions, contract=contract, source=source)
