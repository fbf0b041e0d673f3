"""A provider in a process of its own: it may crash, hang, leave or flood its output, and the run goes on.

The process stays for many calls. Arguments go over by shared memory with their strides and gaps, so a write to an
input is seen as well as in one process. A packed value stays where it was made. When the process ends, the call that
it was busy with raises ``Ended`` with the outcome to record, and the next call starts another process.
"""

from __future__ import annotations

import builtins
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from minimax_m2.harness.arena import filled
from minimax_m2.harness.case import Case
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.op import Declared, Op, all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.transport import Arena, Channel, Handle, decoded, encoded
from minimax_m2.harness.verdict import Outcome

DEADLINE = 120.0
LOADING = 120.0
KEPT_OUTPUT = 4096
TOLD_LINES = 6
# Seconds for a process that closed its end to be gone.
LEAVING = 5.0
# So that no small block comes back as it was left, where the arena fills what is allocated.
NOTHING_KEPT = "glibc.malloc.tcache_count=0"


class Ended(RuntimeError):
    """A provider's process did not answer; ``outcome`` says whether it died, was too slow or had no memory left."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Worker:
    """One process and what is needed to talk to it.

    source    a provider's ``.py`` file, or ``module:function`` of one that builds the provider
    deadline  seconds for one answer; the process is killed when they are over
    memory    bytes that the provider may have, its loaded libraries and what it is given aside; None: all there are
    """

    def __init__(
        self,
        source: str,
        *,
        deadline: float = DEADLINE,
        memory: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.deadline, self.memory = source, deadline, memory
        self.variant = ""
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lives = itertools.count()
        self._life = -1
        self._released: list[int] = []
        self._rests = False
        self._places: dict[str, dict[str, Any]] = {}

    def ask(self, verb: str, **message: Any) -> Any:
        """Send one request that holds no tensors and return the answer."""
        self._started()
        return self._answer({"verb": verb, **message})

    def call(self, function: str, positional: tuple[Any, ...], keywords: dict[str, Any], *, keep: bool = False) -> Any:
        """Call a function of the provider; with ``keep`` its result stays there and a Handle comes back."""
        self._started()
        for value in (*positional, *keywords.values()):
            if isinstance(value, Handle) and value.life != self._life:
                raise ValueError(f"{function} was given a packed value whose process has ended; pack it again")
        self._arena.clear()
        given = encoded((*positional, *keywords.values()), self._arena)["tuple"]
        names = [*argument_names(function, len(positional)), *keywords]
        self._places = {name: v["tensor"] for name, v in zip(names, given, strict=True) if _is_tensor(v)}
        request = {
            "verb": "call",
            "function": function,
            "positional": given[: len(positional)],
            "keywords": dict(zip(keywords, given[len(positional) :], strict=True)),
            "variant": self.variant,
            "keep": keep,
            "behind": self._arena.used,
            "pages": self._arena.pages,
            "fill": filled(),
            "memory": self.memory,
        }
        answer = self._answer(request)
        self._arena.restore(self._places)
        return self._value(answer)

    def make(self, factory: str, **arguments: Any) -> Handle:
        """Keep ``module:function`` of the provider and these JSON arguments there."""
        return self._handle(int(self.ask("make", factory=factory, arguments=arguments)))

    def invoke(self, kept: Handle, method: str, **arguments: Any) -> Any:
        """Call a method of what ``make`` made, with JSON arguments."""
        self._arena.clear()
        self._places = {}
        return self._value(self.ask("invoke", handle=kept.number, method=method, arguments=arguments))

    @property
    def rests(self) -> bool:
        """Whether the process stands still unless it answers, with all its threads, those that wait in a loop too."""
        return self._rests

    @rests.setter
    def rests(self, value: bool) -> None:
        self._rests = value
        self._signal(signal.SIGSTOP if value else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._channel.close()
        # Its own session: whatever it started ends with it. Nothing may be left of either.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._reader.join()

    def _value(self, answer: Any) -> Any:
        if isinstance(answer, dict) and "handle" in answer:
            return self._handle(int(answer["handle"]))
        value = decoded(answer, self._arena, {})
        # The next call uses the arena again.
        if isinstance(value, tuple):
            return tuple(v.clone() if isinstance(v, torch.Tensor) else v for v in value)
        return value.clone() if isinstance(value, torch.Tensor) else value

    def _handle(self, number: int) -> Handle:
        """A handle whose value is dropped there when nobody here holds it any more."""
        handle = Handle(number, self._life)
        weakref.finalize(handle, self._released.append, number)
        return handle

    def _started(self) -> None:
        if self._process is not None:
            return
        self._life, self._released = next(self._lives), []
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("arena")
        self._arena, self._channel = Arena(memory), Channel(ours)
        command = [sys.executable, "-m", "minimax_m2.harness.worker_process"]
        command += [str(theirs.fileno()), str(os.dup(memory)), self.source, str(torch.get_num_threads())]
        tunables = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), NOTHING_KEPT)))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), int(command[4])), start_new_session=True,
            env=os.environ | {"GLIBC_TUNABLES": tunables} | self._environment,
        )  # fmt: skip
        os.close(int(command[4]))
        theirs.close()
        self._printed = bytearray()
        self._reader = threading.Thread(target=self._drain, args=(self._process, self._printed), daemon=True)
        self._reader.start()
        try:
            # To import torch takes seconds, on a busy machine many.
            self._receive("loading the provider", max(self.deadline, LOADING))
        except Exception:
            self.close()
            raise

    @staticmethod
    def _drain(process: subprocess.Popen[bytes], kept: bytearray) -> None:
        """Read what the process prints, so that it never waits for us, and keep the end of it."""
        assert process.stdout is not None, "the process was started with a pipe"
        with process.stdout as pipe:
            while part := os.read(pipe.fileno(), 1 << 16):
                kept += part
                del kept[:-KEPT_OUTPUT]

    def _answer(self, request: dict[str, Any]) -> Any:
        what = str(request.get("function") or request["verb"])
        released = [self._released.pop() for _ in range(len(self._released))]
        if self._rests:
            self._signal(signal.SIGCONT)
        try:
            self._channel.send(request | {"released": released})
        except OSError as error:
            raise self._ended(Outcome.CRASHED, what) from error
        try:
            return self._receive(what, self.deadline)
        finally:
            if self._rests:
                self._signal(signal.SIGSTOP)

    def _receive(self, what: str, seconds: float) -> Any:
        start = time.monotonic()
        try:
            message = self._channel.receive(seconds)
        except TimeoutError as error:
            raise self._ended(Outcome.TIMED_OUT, what, time.monotonic() - start) from error
        except (EOFError, OSError, ValueError) as error:
            raise self._ended(Outcome.CRASHED, what) from error
        if "outcome" in message:
            kind_of = Ended if message["outcome"] == Outcome.OUT_OF_MEMORY.value else Misplaced
            raise kind_of(Outcome(message["outcome"]), str(message["text"]))
        if "raised" in message:
            kind = getattr(builtins, str(message["raised"]), None)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            text = str(message["text"])
            raise kind(text) if known else RuntimeError(f"{message['raised']}: {text}")  # type: ignore[misc]
        return message["answer"]

    def _ended(self, outcome: Outcome, what: str, seconds: float = 0.0) -> Ended:
        process = self._process
        assert process is not None, "only a started process can end"
        if outcome is Outcome.TIMED_OUT:
            self.close()
            return Ended(outcome, f"no answer to {what} after {seconds:.0f} s; the process was killed")
        # Its exit is looked at before it is reaped: until then nobody else can have its number.
        until = time.monotonic() + LEAVING
        while (left := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        self.close()
        told = [line for line in self._printed.decode(errors="replace").splitlines() if line.strip()]
        # C++ that nobody catches dies by SIGABRT, and says why.
        outcome = Outcome.OUT_OF_MEMORY if any("bad_alloc" in line for line in told) else outcome
        words = f"; it printed: {' | '.join(told[:TOLD_LINES])}" if told else ""
        touched = self._arena.touched(self._places)
        place = f"; {touched}" if touched else ""
        return Ended(outcome, f"the process {ending(process.returncode if left else None)} during {what}{place}{words}")


def argument_names(function: str, count: int) -> list[str]:
    """Names of ``count`` positional arguments of a provider's function; outputs to be written follow an op's own."""
    op = all_ops().get(function.removesuffix("_out"))
    known = () if op is None else op.positional()
    return [known[at] if at < len(known) else f"argument {at + 1}" for at in range(count)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "tensor" in value


def ending(code: int | None) -> str:
    """A process's return code in words."""
    if code is None:
        return "closed its end and went on"
    if code < 0:
        return f"died by {signal.Signals(-code).name}"
    return f"left with exit code {code}"


def isolated(
    source: str, *, name: str, device: str = "cpu", deadline: float = DEADLINE, memory: int | None = None
) -> Provider:
    """The provider of ``source`` in a process of its own, which ends with this one or with its last use."""
    return provider_in(Worker(source, deadline=deadline, memory=memory), name=name, device=device)


def provider_in(worker: Worker, *, name: str, device: str = "cpu") -> Provider:
    """See a worker as a provider. Raises ``Ended``, or what the provider raised, where it cannot be loaded.

    What it offers and promises is asked op by op, since to answer may mean to compile.
    """
    variants = tuple(worker.ask("variants"))
    offers = cache(lambda function: bool(worker.ask("offers", function=function)))

    def functions(function: str) -> Callable[..., Any] | None:
        if not offers(function):
            return None
        # What is no op lays out an argument: its result is nobody's business but the provider's.
        keep = function.removesuffix("_out") not in all_ops()
        return lambda *positional, **keywords: worker.call(function, positional, keywords, keep=keep)

    @contextmanager
    def enter(variant: str) -> Iterator[None]:
        worker.variant, before = variant, worker.variant
        try:
            yield
        finally:
            worker.variant = before

    def refuses(op: Op, case: Case) -> str | None:
        return worker.ask("refuses", op=op.name, case=case.json)

    return Provider(
        name=name,
        device=device,
        functions=functions,
        contract=Contracts(worker),
        variants=variants,
        enter=enter,
        lacks=cache(lambda op, variant: bool(worker.ask("lacks", op=op, variant=variant))),
        source=worker.source if worker.source.endswith(".py") else "",
        refuses=refuses,
    )


class Contracts(Mapping[str, Declared]):
    """The contract of each op, asked of the worker when it is wanted."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._known: dict[str, Declared] = {}

    def __getitem__(self, op: str) -> Declared:
        if op not in self._known:
            fixed = self._worker.ask("contract", op=op, case=None)
            self._known[op] = (lambda case: self._of(op, case)) if fixed is None else fixed
        return self._known[op]

    def _of(self, op: str, case: Case) -> dict[str, Any]:
        return self._worker.ask("contract", op=op, case=case.json)

    def __iter__(self) -> Iterator[str]:
        return iter(all_ops())

    def __len__(self) -> int:
        return len(all_ops())
