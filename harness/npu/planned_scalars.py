"""The scalar part of a planned program, run: which loops turn how often, and what size each call is handed.

A planned program computes places and sizes in integers and leaves the numbers to calls. Here its integers are
computed, its calls noted, and what comes out of memory or of floating point is unknown. A branch without results on an
unknown is taken; whatever else would need one to go on is an error, and so is an instruction that is not known here.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MAP = re.compile(r"^#(\w+) = affine_map<\(([\w, ]*)\)(?:\[([\w, ]*)\])? -> \((.*)\)>$", re.MULTILINE)
_LINE = re.compile(r"\s*(?:(?P<out>%[\w-]+)(?::\d+)? = )?(?P<op>[a-z_]+(?:\.[\w]+)*)(?P<rest>.*)$")
_VALUE = re.compile(r"%[\w-]+(?:#\d+)?")
_MEMORY = re.compile(r"memref<((?:[\d?]+x)*)(\w+).*?#hivm\.address_space<(\w+)>")
_BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2, "i16": 2, "i64": 8, "i8": 1, "i1": 1}
_BINARY: dict[str, Callable[[int, int], int]] = {
    "arith.addi": operator.add, "arith.subi": operator.sub, "arith.muli": operator.mul, "arith.andi": operator.and_,
    "arith.ori": operator.or_, "arith.xori": operator.xor, "arith.maxsi": max, "arith.minsi": min,
    "arith.divsi": lambda a, b: int(a / b), "arith.remsi": lambda a, b: int(math.fmod(a, b)),
    "arith.floordivsi": operator.floordiv, "arith.ceildivsi": lambda a, b: -(-a // b),
}  # fmt: skip
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "slt": operator.lt, "sle": operator.le, "sgt": operator.gt,
    "sge": operator.ge, "ult": operator.lt, "ule": operator.le, "ugt": operator.gt, "uge": operator.ge,
}  # fmt: skip
_SAME = ("arith.index_cast", "arith.extsi", "arith.extui", "arith.trunci")
# Numbers that come of floating point or out of memory; what is done with them costs a scalar unit and moves nothing.
_UNKNOWN = (
    "arith.addf", "arith.cmpf", "arith.mulf", "arith.subf", "arith.divf", "arith.sitofp", "arith.maximumf",
    "arith.minimumf", "arith.negf", "arith.extf", "arith.truncf", "arith.fptosi", "arith.bitcast",
    "math.sqrt", "math.exp",
)  # fmt: skip
_NOTED = ("hivm.hir.set_flag", "hivm.hir.wait_flag", "hivm.hir.pipe_barrier")
_SILENT = ("hivm.hir.set_mask_norm", "return", "scf.yield")


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of memory: where, its sizes, and the bytes of an element."""

    space: str
    sizes: tuple[int, ...]
    width: int

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.width


@dataclass(frozen=True, slots=True)
class Event:
    """A call, an instruction of synchronisation, or a single number read or written, with the memory it is given."""

    name: str
    given: tuple[Memory, ...]


def events(program: str, arguments: Sequence[int | float | None], block: int) -> Iterator[Event]:
    """What one program of a launch does, in order.

    program    all that the compiler printed of a module, the kernel's function last
    arguments  values of the kernel's arguments, in the function's order; None for memory
    block      which program of the grid it is

    Raises ValueError for an instruction that is not known, or a size that hangs on a number which is not.
    """
    maps = {
        name: ([*dims.replace(" ", "").split(","), *(symbols or "").replace(" ", "").split(",")], results)
        for name, dims, symbols, results in _MAP.findall(program)
    }
    head, lines, ends = _parsed(program)
    names = re.findall(r"(%arg\d+): (memref<.*?>>|\w+)", head)
    values: dict[str, Any] = {
        name: _memory(kind, ()) if kind.startswith("memref") else value
        for (name, kind), value in zip(names, arguments, strict=True)
    }
    yield from _Run(lines, ends, maps, block).block(0, values)


@dataclass(frozen=True, slots=True)
class _Line:
    """An instruction: the name of its result, its own name, what follows, and the values that it is given."""

    text: str
    out: str | None
    op: str
    rest: str
    operands: tuple[str, ...]


@lru_cache(maxsize=8)
def _parsed(program: str) -> tuple[str, list[_Line], dict[int, int]]:
    """The head of the last function, its lines, and where the block that opens in a line ends."""
    head, _, body = program.rpartition("func.func @")[2].partition("\n")
    lines = []
    for line in body.splitlines():
        found = _LINE.match(line)
        out, op, rest = found.group("out", "op", "rest") if found else (None, "", line)
        lines.append(_Line(line.strip(), out, op, rest, tuple(_VALUE.findall(rest.partition(" : ")[0]))))
    return head, lines, _ends(lines)


class _Run:
    def __init__(
        self, lines: list[_Line], ends: dict[int, int], maps: dict[str, tuple[list[str], str]], block: int
    ) -> None:
        self._lines, self._ends, self._maps, self._block = lines, ends, maps, block
        self.yielded: list[Any] = []

    def block(self, at: int, values: dict[str, Any]) -> Iterator[Event]:
        """Run from a line to the end of its block."""
        while not self._lines[at].text.startswith("}"):
            line = self._lines[at]
            if line.op == "scf.for":
                yield from self._loop(at, line, values)
                at = self._ends[at] + 1
            elif line.op == "scf.if":
                yield from self._branch(at, line, values)
                at = self._after_branch(at)
            else:
                yield from self._one(line, values)
                at += 1

    def _loop(self, at: int, line: _Line, values: dict[str, Any]) -> Iterator[Event]:
        bounds = re.match(r" (%\w+) = (\S+) to (\S+) step (\S+)", line.rest)
        if bounds is None:
            raise ValueError(f"a loop has another form: {line.text}")
        first, last, step = (self._known(values, name, line) for name in bounds.groups()[1:])
        carried = re.findall(r"(%\w+) = (%\w+(?:#\d+)?)", line.rest[bounds.end() :])
        held = [values[start] for _, start in carried]
        for i in range(first, last, step):
            inner = values | {bounds[1]: i} | dict(zip((name for name, _ in carried), held, strict=True))
            yield from self.block(at + 1, inner)
            if carried:
                held = self.yielded
        _assign(values, line.out, held)

    def _branch(self, at: int, line: _Line, values: dict[str, Any]) -> Iterator[Event]:
        # Where a number of the tensors decides and nothing comes of it but what is done, the most is counted.
        is_open = line.out is None and values.get(line.operands[0]) is None
        condition = is_open or self._known(values, line.operands[0], line)
        other = self._ends[at] if "else" in self._lines[self._ends[at]].text else None
        start = at if condition else other
        if start is not None:
            yield from self.block(start + 1, dict(values))
        _assign(values, line.out, self.yielded)

    def _after_branch(self, at: int) -> int:
        end = self._ends[at]
        return (self._ends[end] if "else" in self._lines[end].text else end) + 1

    def _one(self, line: _Line, values: dict[str, Any]) -> Iterator[Event]:
        op, rest, out = line.op, line.rest, line.out
        operands = [values.get(name) for name in line.operands]
        memory = tuple(x for x in operands if isinstance(x, Memory))
        if op in ("call", "func.call"):
            name = rest.strip().removeprefix("@").partition("(")[0]
            yield Event(name, memory)
        elif op in _NOTED:
            yield Event(op.rpartition(".")[2], ())
        elif op == "scf.yield":
            self.yielded = operands
        elif op in ("memref.load", "memref.store"):
            yield Event(op, memory)
            if out:
                values[out] = None
        elif op not in _SILENT:
            if not op:
                raise ValueError(f"a planned program has a line of another release: {line.text}")
            values[str(out)] = self._computed(op, rest, operands, values, line)

    def _computed(self, op: str, rest: str, operands: list[Any], values: dict[str, Any], line: _Line) -> Any:
        if op == "arith.constant":
            text = rest.split(":")[0].strip().split(" ")[0]
            return {"true": 1, "false": 0}.get(text, int(text) if re.fullmatch(r"-?\d+", text) else None)
        if op == "hivm.hir.get_block_idx":
            return self._block
        if op in _SAME:
            return operands[0]
        if op in _UNKNOWN:
            return None
        if op in _BINARY:
            return None if None in operands else _BINARY[op](operands[0], operands[1])
        if op == "arith.cmpi":
            return None if None in operands else int(_COMPARE[rest.split(",")[0].strip()](*operands[:2]))
        if op == "arith.select":
            condition, yes, no = operands
            if condition is None:
                return yes if isinstance(yes, Memory) and yes == no else None
            return yes if condition else no
        if op in ("affine.apply", "affine.min", "affine.max"):
            return self._mapped(op, rest, operands)
        if op == "memref.cast":
            return operands[0]
        if op.startswith("memref.") or op in ("hivm.hir.pointer_cast", "hivm.hir.bitcast"):
            return self._piece(op, rest, operands, values, line)
        raise ValueError(f"a planned program has an instruction that is not known here: {line.text}")

    def _mapped(self, op: str, rest: str, operands: list[Any]) -> int | None:
        if None in operands:
            return None
        names, results = self._maps[rest.strip().removeprefix("#").partition("(")[0]]
        scope = dict(zip((name for name in names if name), operands, strict=True))
        text = results.replace("floordiv", "//").replace("mod", "%")
        if "ceildiv" in text:
            raise ValueError(f"a map divides upwards, which is not known here: {results}")
        found = eval(f"({text},)", {"__builtins__": {}}, scope)
        return int({"affine.apply": min, "affine.min": min, "affine.max": max}[op](found))

    def _piece(self, op: str, rest: str, operands: list[Any], values: dict[str, Any], line: _Line) -> Memory:
        """A piece of memory by its type, its open sizes by the operands that stand for them."""
        kind = re.split(r" to | into | -> ", rest)[-1] if op != "hivm.hir.pointer_cast" else rest
        listed = {"memref.reinterpret_cast": r"sizes: \[([^\]]*)\]", "memref.subview": r"\[[^\]]*\] \[([^\]]*)\]"}
        if op in listed:
            (text,) = re.findall(listed[op], rest)[:1]
            sizes = [self._known(values, size.strip(), line) for size in text.split(",")]
        elif "?" in kind.partition("#")[0].partition(",")[0]:
            sizes = [math.prod(operands[0].sizes)]
        else:
            sizes = []
        return _memory(kind, tuple(sizes))

    def _known(self, values: dict[str, Any], name: str, line: _Line) -> int:
        value = int(name) if re.fullmatch(r"-?\d+", name) else values.get(name)
        if not isinstance(value, int):
            raise ValueError(f"{name} is not known, and this hangs on it: {line.text}")
        return value


def _memory(kind: str, sizes: tuple[int, ...]) -> Memory:
    found = _MEMORY.search(kind)
    if found is None:
        raise ValueError(f"no memory of a known space: {kind.strip()}")
    given = iter(sizes)
    listed = [next(given, 0) if size == "?" or sizes else int(size) for size in found[1].split("x")[:-1]]
    return Memory(found[3], tuple(listed), _BYTES[found[2]])


def _assign(values: dict[str, Any], out: str | None, found: list[Any]) -> None:
    """Give the results of a block their names: one has the name itself, several are numbered."""
    if out:
        values |= {out: found[0]} | {f"{out}#{place}": x for place, x in enumerate(found)}


def _ends(lines: list[_Line]) -> dict[int, int]:
    """Where the block that opens in a line ends; an ``else`` ends one and opens the next."""
    found, opened = {}, list[int]()
    for at, line in enumerate(lines):
        text = line.text
        if text.startswith("}") and opened:
            found[opened.pop()] = at
        if line.op in ("scf.for", "scf.if") or text.startswith("} else"):
            opened.append(at)
    return found
