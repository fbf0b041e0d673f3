"""The process of a worker: load the provider, answer requests until the other end closes.

Started as ``python -m minimax_m2.harness.worker_process SOCKET MEMORY SOURCE THREADS``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import itertools
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness import fault
from minimax_m2.harness.arena import allocations
from minimax_m2.harness.case import Case
from minimax_m2.harness.layout import Misplaced, demand_layout, demand_own_memory
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.transport import Arena, Channel, decoded, encoded, guarded_copy
from minimax_m2.harness.verdict import Outcome
from minimax_m2.harness.watched import is_packed

PR_SET_PDEATHSIG = 1
EXHAUSTED = (MemoryError, torch.OutOfMemoryError)
# torch's CPU allocator raises a RuntimeError; a file that cannot be mapped, an OSError.
EXHAUSTED_WORDS = ("can't allocate memory", "Cannot allocate memory", "bad_alloc")


def load(source: str) -> Provider:
    """The provider of a ``.py`` file, or what ``module:function`` returns."""
    if source.endswith(".py"):
        return from_file(source)
    return named(source)()


def named(path: str) -> Callable[..., Any]:
    """The object that ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class Answers:
    """What the process answers, a method a verb."""

    def __init__(self, provider: Provider, arena: Arena) -> None:
        self.provider, self.arena = provider, arena
        self.kept: dict[int, Any] = {}
        self._last: dict[str, Any] = {}
        self._numbers = itertools.count()
        self._loaded = mapped() - arena.size

    def variants(self) -> list[str]:
        return list(self.provider.variants)

    def lacks(self, op: str, variant: str) -> bool:
        return self.provider.lacks(op, variant)

    def contract(self, op: str, case: str | None) -> dict[str, Any] | None:
        """What is declared for an op; None without a case where it depends on one."""
        declared = self.provider.contract.get(op, {})
        if not callable(declared):
            return dict(declared)
        return None if case is None else dict(declared(Case.from_json(case)))

    def offers(self, function: str) -> bool:
        return self.provider.functions(function) is not None

    def refuses(self, op: str, case: str) -> str | None:
        return self.provider.refuses(find_op(op), Case.from_json(case))

    def call(
        self,
        function: str,
        positional: list[Any],
        keywords: dict[str, Any],
        variant: str,
        keep: bool,
        behind: int,
        pages: list[int],
        fill: int,
        memory: int | None,
    ) -> Any:
        given = [decoded(v, self.arena, self.kept) for v in positional]
        named_ = {name: decoded(v, self.arena, self.kept) for name, v in keywords.items()}
        if keep:
            given, named_ = [owned(v) for v in given], {name: owned(v) for name, v in named_.items()}
        called = self.provider.function(function)
        limit = None if memory is None else self._loaded + self.arena.size + memory
        with self.provider.enter(variant), self.arena.protected(pages), allocations(fill), at_most(limit):
            returned = called(*given, **named_)
        if keep:
            return self._keep(guarded(returned))
        if function in all_ops():
            # Here, because what is sent is a copy.
            demand_layout(find_op(function), returned, [*given, *named_.values()])
            last, self._last[function] = self._last.get(function), returned
            demand_own_memory(find_op(function), returned, last)
        self.arena.clear()
        return sent(returned, self.arena, behind)

    def make(self, factory: str, arguments: dict[str, Any]) -> int:
        return self._keep(named(factory)(self.provider, **arguments))["handle"]

    def invoke(self, handle: int, method: str, arguments: dict[str, Any]) -> Any:
        self.arena.clear()
        return sent(getattr(self.kept[handle], method)(**arguments), self.arena, 0)

    def release(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.kept[number]

    def _keep(self, value: Any) -> dict[str, int]:
        number = next(self._numbers)
        self.kept[number] = value
        return {"handle": number}


def owned(value: Any) -> Any:
    """A copy that lives longer than the arena's next use."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_contiguous() else torch.empty_like(value).copy_(value)
    return tuple(owned(v) for v in value) if isinstance(value, tuple) else value


def mapped() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def at_most(size: int | None) -> Iterator[None]:
    """Let this process have so many bytes of addresses meanwhile; None: as many as there are."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if size is not None:
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def guarded(value: Any) -> Any:
    """A packed value whose tensors have a page of nobody's behind them; what is none as it is."""
    if not is_packed(value) or not all(isinstance(v, Tensor | None | int | float | str) for v in value):
        return value
    fields = [guarded_copy(v) if isinstance(v, Tensor) and v.numel() else v for v in value]
    return value._make(fields) if hasattr(value, "_make") else tuple(fields)


def sent(value: Any, arena: Arena, behind: int) -> Any:
    """A result as JSON; what is no tensor is told by its type, for the judge to refuse."""
    if isinstance(value, Tensor):
        # A copy: what the provider returns may be a view of its inputs, whose storage is the whole arena.
        return encoded(value.clone(memory_format=torch.contiguous_format), arena, behind=behind)
    if isinstance(value, tuple | list):
        return {"tuple": [sent(v, arena, behind) for v in value]}
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def serve(channel: Channel, arena: Arena, source: str) -> None:
    """Answer until the other end closes."""
    answers: Answers | None = None
    while True:
        try:
            if answers is None:
                answers = Answers(load(source), arena)
                reply: Any = None
            else:
                request = channel.receive()
                answers.release(request.pop("released"))
                reply = getattr(answers, str(request.pop("verb")))(**request)
        except EOFError:
            return
        except Misplaced as error:
            channel.send({"outcome": error.outcome.value, "text": str(error)})
            continue
        except EXHAUSTED as error:
            channel.send({"outcome": Outcome.OUT_OF_MEMORY.value, "text": f"{type(error).__name__}: {error}"})
            continue
        # SystemExit too: a provider that leaves by it is told, not mistaken for one that died.
        except (Exception, SystemExit) as error:
            if any(words in str(error) for words in EXHAUSTED_WORDS):
                channel.send({"outcome": Outcome.OUT_OF_MEMORY.value, "text": str(error).splitlines()[0]})
                continue
            channel.send({"raised": type(error).__name__, "text": str(error)})
            if answers is None:
                return
            continue
        channel.send({"answer": reply})


def main() -> None:
    socket_, memory, source, threads = sys.argv[1:]
    # Should the harness die, its workers go with it, even one that hangs.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    torch.set_num_threads(int(threads))
    arena = Arena(int(memory))
    fault.tell(arena.fault())
    serve(Channel(socket.socket(fileno=int(socket_))), arena, source)


if __name__ == "__main__":
    main()
