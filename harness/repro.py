"""A failure as a script of at most 80 lines that needs torch and the provider only, run before it is written.

A script is code and so is the provider that it loads: read both before you run what is not yours.
"""

from __future__ import annotations

import base64
import math
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.expectation import Expectation, expectation
from minimax_m2.harness.judge import ALPHA_OF_A_CALL, call, malformed
from minimax_m2.harness.op import Op, Pack, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.shrink import given, shrunk, simpler_values
from minimax_m2.harness.verdict import Outcome, Verdict, describe
from minimax_m2.harness.worker import Ended

HELPER = '''def packed(text, dtype, shape, stride):
    """A tensor from its bytes."""
    raw = torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(text))), dtype=torch.uint8)
    return torch.as_strided(raw.view(dtype), shape, stride)'''
LARGEST_LITERAL = 48
MOST_LINES = 80
SECONDS = 60
# What a script can show: the others are about where memory lies, which takes the harness to see.
SHOWN = (
    *(Outcome.WRONG, Outcome.NOT_A_NUMBER, Outcome.RAISED, Outcome.CRASHED),
    *(Outcome.WRONG_SHAPE, Outcome.WRONG_DTYPE, Outcome.OUT_OF_MEMORY),
)


class NotWritten(RuntimeError):
    """No script could be written that shows the failure; the message says why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What one call on given arguments did wrong: in words, and where, if one element shows it."""

    told: str
    output: str = ""
    index: tuple[int, ...] = ()
    expected: float = math.nan
    limit: float = math.nan
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    row: tuple[int, ...] = ()


def smallest(case: Case, provider: Provider, variant: str, judge: Any, *, seconds: float = 30.0) -> Verdict:
    """The verdict on the smallest case found on which a provider fails as it does on this one."""
    first: Verdict = judge(case, provider, variant)
    if first.passed or first.outcome in (Outcome.UNSUPPORTED, Outcome.VACUOUS):
        raise NotWritten(f"case {case.id} is {first.outcome.value} on {provider.name}: there is no failure")
    if first.outcome is Outcome.TIMED_OUT:
        return first
    # Each try of what ends its process starts another.
    patience = 2 if first.outcome is Outcome.CRASHED else 1
    found = shrunk(
        find_op(case.op), case, lambda c: judge(c, provider, variant).outcome is first.outcome,
        seconds=patience * seconds,
    )  # fmt: skip
    return judge(found, provider, variant)


def write(verdict: Verdict, provider: Provider, folder: Path, *, seconds: float = 20.0) -> Path:
    """Write ``repro_<case id>.py`` that fails as the verdict does. Raises NotWritten with the reason."""
    op, case = find_op(verdict.op), verdict.case
    if verdict.outcome not in SHOWN:
        raise NotWritten(f"{verdict.outcome.value} takes the harness to see: {verdict.replay(provider.source)}")
    loads = loading(provider, op, verdict.variant)
    arguments, failure = _small(op, case, provider, verdict, seconds)
    text = script(op, case, arguments, failure, loads)
    if (lines := len(text.splitlines())) > MOST_LINES:
        raise NotWritten(f"the smallest case found would take {lines} lines, {MOST_LINES} are read at a glance")
    path = folder / f"repro_{case.id}.py"
    path.write_text(text)
    try:
        done = subprocess.run([sys.executable, path.name], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return path
    if done.returncode == 0:
        path.unlink()
        raise NotWritten(f"the script does not fail: {done.stdout.strip().splitlines()[-1:]}")
    return path


def _small(op: Op, case: Case, provider: Provider, verdict: Verdict, seconds: float) -> tuple[dict[str, Any], Failure]:
    """Arguments with as many zeros and ones as leave the failure, and what it is on them."""
    arguments, contract = op.inputs(case, Bits(case)), op.full_contract(case, provider.contract.get(op.name, {}))

    def failure(values: dict[str, Any]) -> Failure | None:
        right = expectation(given(op, values), case, contract)
        return fault(op, right, provider, verdict.variant, values)

    first = failure(arguments)
    if first is None:
        raise NotWritten(f"{op.name} alone, once, does not fail: {verdict.replay(provider.source)}")
    # A wrong result must stay one that an element shows; what ends in an error or a dead process, the same.
    shown = bool(first.output)
    kind = first.told.partition(":")[0]

    def same(values: dict[str, Any]) -> bool:
        now = failure(values)
        return now is not None and (bool(now.output) if shown else now.told.partition(":")[0] == kind)

    arguments = simpler_values(arguments, same, seconds=seconds)
    return arguments, failure(arguments) or first


def fault(op: Op, right: Expectation, provider: Provider, variant: str, arguments: dict[str, Any]) -> Failure | None:
    """Call a provider once on these arguments and say what is wrong."""
    function = provider.functions(op.name)
    if function is None:
        raise NotWritten(f"provider {provider.name!r} does not offer {op.name}")
    own = {name: _own(value, provider) for name, value in arguments.items()}
    try:
        with provider.enter(variant):
            outputs = outputs_of(op, call(op, function, own), own)
    except (Ended, Exception, SystemExit) as error:
        # What a dead process printed is full of places on this machine.
        return Failure(f"{type(error).__name__}: {error}".partition("; it printed")[0])
    off = malformed(right, outputs)
    if off is not None:
        name = off[1].split()[0]
        known = name in right.dtypes
        return Failure(off[1], name, shape=right.shapes[name], dtype=right.dtypes[name]) if known else Failure(off[1])
    host = tuple(o.detach().cpu() for o in outputs)
    failed = [c for c in right.judge(host, alpha=ALPHA_OF_A_CALL) if not c.passed]
    return _of(failed[0], right, host) if failed else None


def _of(found: Comparison, right: Expectation, outputs: tuple[Tensor, ...]) -> Failure:
    place = list(right.dtypes).index(found.output)
    actual, perfect = outputs[place], right.perfect()[place]
    if not actual.is_floating_point() and actual.ndim == 2:
        # A row of ids is right in any order.
        other = (actual.sort(-1).values != perfect.sort(-1).values).any(-1).nonzero()[:, 0].tolist()
        if other:
            row = tuple(int(i) for i in perfect[other[0]])
            return Failure(describe(found), found.output, (other[0],), row=row)
    worst = found.worst
    if worst is None or not (found.tests.get("element", 0) > 1):
        return Failure(describe(found))
    return Failure(describe(found), found.output, worst.index, worst.expected, worst.limit)


def _own(value: Any, provider: Provider) -> Any:
    if isinstance(value, Pack):
        pack = provider.functions(value.function)
        if pack is None:
            raise NotWritten(f"provider {provider.name!r} does not offer {value.function}")
        return pack(**{name: _own(v, provider) for name, v in value.arguments.items()})
    return torch.empty_like(value).copy_(value) if isinstance(value, Tensor) else value


def loading(provider: Provider, op: Op, variant: str) -> list[str]:
    """Lines that bind ``provider`` to the module of a provider's functions."""
    if provider.source.endswith(".py"):
        return [
            f"path = sys.argv[1] if len(sys.argv) > 1 else {str(Path(provider.source).resolve())!r}",
            'spec = importlib.util.spec_from_file_location("provider", path)',
            "provider = importlib.util.module_from_spec(spec)",
            "spec.loader.exec_module(provider)",
        ]
    if provider.name == "ours":
        isa = [f'os.environ["MINIMAX_M2_CPU_ISA"] = {variant!r}'] if variant else []
        stem = op.stem or op.name
        return [*isa, f'provider = importlib.import_module("minimax_m2.kernels.{provider.device}.{stem}")']
    raise NotWritten(f"provider {provider.name!r} is no file and none of our kernels, so no script can load it")


def script(op: Op, case: Case, arguments: dict[str, Any], failure: Failure, loads: list[str]) -> str:
    """The text of the script; it ends in 1 where the failure is still there."""
    told = textwrap.wrap(failure.told, 110) or [op.name]
    values = [line for name, value in arguments.items() for line in bound(name, value)]
    order = [name for name in op.positional() if name in arguments]
    handed = ", ".join([*order, *(f"{name}={name}" for name in arguments if name not in order)])
    names = [name for name in op.outputs if name not in op.mutates]
    returned = list(wrapped("returned = ", f"provider.{op.name}({handed})"))
    if names:
        returned.append("returned = returned if isinstance(returned, tuple | list) else (returned,)")
    outputs = [f'"{n}": returned[{i}]' for i, n in enumerate(names)] + [f'"{n}": {n}' for n in op.mutates]
    body = [*loads, *values, *returned, f"outputs = {{{', '.join(outputs)}}}", *checked(failure)]
    body += ['print("wrong" if wrong else "right: the failure is gone")', "sys.exit(1 if wrong else 0)"]
    text = "\n".join(body)
    modules = [m for m in ("base64", "importlib", "importlib.util", "os", "sys", "zlib") if f"{m}." in text + HELPER]
    if "packed(" not in text.replace("_packed(", ""):
        modules = [m for m in modules if f"{m}." in text]
    lines = [
        f'"""{op.name} is wrong:', *told, "", f"m2check repro '{case.json}'", "",
        "Needs torch and the provider only. The provider is code and runs: read it first if it is not yours.", '"""',
        "", *(f"import {module}" for module in modules), "from math import inf, nan  # noqa: F401",
        "", "import torch", "",
        *(["", *HELPER.splitlines(), "", ""] if "zlib" in modules else []), *body,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def checked(failure: Failure) -> list[str]:
    """Lines that set ``wrong``."""
    if failure.dtype is not None:
        return [
            f'actual = outputs["{failure.output}"]',
            f"wrong = getattr(actual, 'shape', None) != {tuple(failure.shape)} or actual.dtype != {failure.dtype}",
        ]
    if failure.row:
        return [
            f"expected = {sorted(failure.row)}",
            f'actual = sorted(outputs["{failure.output}"][{failure.index[0]}].tolist())',
            f'print("{failure.output} of row {failure.index[0]}:", actual, "expected", expected)',
            "wrong = actual != expected",
        ]
    if failure.output:
        place = "".join(f"[{i}]" for i in failure.index)
        return [
            f"expected, budget = {failure.expected!r}, {failure.limit!r}",
            f'actual = float(outputs["{failure.output}"]{place})',
            f'print(f"{failure.output} at {list(failure.index)}: actual {{actual:.9g}}, expected {{expected:.9g}}, "',
            '      f"error {abs(actual - expected):.3g}, budget {budget:.3g}")',
            "wrong = not (abs(actual - expected) <= budget or actual == expected)",
        ]
    # Nothing but the call's own end tells what is wrong; a call that returns is right.
    return ["wrong = False"]


def bound(name: str, value: Any) -> Iterator[str]:
    """Lines that bind a name to an argument."""
    if isinstance(value, Pack):
        for field, part in value.arguments.items():
            yield from bound(f"{name}_{field}", part)
        handed = ", ".join(f"{field}={name}_{field}" for field in value.arguments)
        yield f"{name} = provider.{value.function}({handed})"
    elif isinstance(value, Tensor):
        yield from wrapped(f"{name} = ", literal(value))
    else:
        yield f"{name} = {value!r}"


def literal(x: Tensor) -> str:
    """An expression that makes a tensor again, to the bit where it is no NaN."""
    same = x.numel() > 1 and x.is_contiguous() and bool((_bits(x) == _bits(x)[:1]).all())
    if same:
        return f"torch.full({tuple(x.shape)}, {x.flatten()[0].item()!r}).to({x.dtype})"
    if x.numel() <= LARGEST_LITERAL and x.is_contiguous():
        kind = "float64" if x.is_floating_point() else "int64"
        return f"torch.tensor({x.to(getattr(torch, kind)).tolist()!r}, dtype=torch.{kind}).to({x.dtype})"
    flat = x.contiguous()
    text = base64.b85encode(zlib.compress(bytes(_bits(flat).flatten().tolist()), 9)).decode()
    return f"packed({text!r}, {x.dtype}, {tuple(x.shape)}, {tuple(flat.stride())})"


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8).view(x.numel(), x.element_size())


def wrapped(start: str, text: str, width: int = 116) -> Iterator[str]:
    """A statement over several lines: a long literal is cut where its text may be."""
    if len(start) + len(text) <= width:
        yield start + text
        return
    quoted = text.startswith("packed('")
    if quoted:
        data, _, rest = text.removeprefix("packed('").partition("', ")
        yield f"{start}packed("
        for at in range(0, len(data), width):
            yield f"    '{data[at : at + width]}'"
        yield f"    , {rest}"
        return
    yield f"{start}("
    yield from (f"    {line}" for line in textwrap.wrap(text, width, break_long_words=False))
    yield ")"
