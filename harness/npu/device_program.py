"""The program at the closed back end's door, written for this CPU: buffers stay where they were planned.

What Huawei's compiler hands to its closed part has its buffers at fixed places of the unified buffer, its loops and
places in integers, and its vector instructions as calls. Loops, integers and calls are MLIR's own; what is not, is
replaced here, line by line. A line that is not known is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from minimax_m2.harness.npu.planned import BUFFER_BYTES

BUFFER = f"memref<{BUFFER_BYTES}xi8>"

_SPACE = re.compile(r", #hivm\.address_space<\w+>")
_ATTRIBUTES = re.compile(r" attributes \{.*\}( \{)?$")
_ARGUMENT = re.compile(r"(%arg\d+: (?:memref<[^>]*>|\w+)) \{[^}]*\}")
# The library of vector instructions is found by names: with the number of operands in them, only as it is called.
_DECLARED = re.compile(r"@(\w+)\((.*)\)")
_CALL = re.compile(r"((?:func\.)?call )@(\w+)\(([^)]*)\)(.*)$")
_HOST = "hacc.function_kind<HOST>"
_HINTS = re.compile(r"^\} \{[^}]*\}$")
# Pipes wait for each other on the device; here each instruction ends before the next begins.
_WAITS = re.compile(r"hivm\.hir\.(set_flag|wait_flag|pipe_barrier)\[|hivm\.hir\.set_mask_norm$")
_BUFFER = re.compile(r"(%\w+) = hivm\.hir\.pointer_cast\((%[\w-]+)\) : (memref<.*>)$")
_BLOCK = re.compile(r"(%\w+) = hivm\.hir\.get_block_idx -> i64$")
_SAME_BITS = re.compile(r"(%\w+) = hivm\.hir\.bitcast (%\w+) : memref<.*> -> (memref<.*>)$")
# A row of several that was cut out, as a vector: to MLIR 19 that is no collapse, but a view of lower rank.
_ROW = re.compile(
    r"(%\w+) = memref\.collapse_shape (%\w+) \[\[0, 1\]\] : (memref<1x(\d+|\?)x\w+, strided.*>) into (.*)$"
)
_CHOICE = re.compile(r"(%\w+) = arith\.select (%[\w#]+), (%[\w#]+), (%[\w#]+) : (memref<.*>)$")
# A truth is a bit of the unified buffer; to MLIR it is a byte, which is the same of one alone.
_TRUTH = re.compile(r"memref\.(load|store) .* : memref<(?!1xi1\b)[\d?x]*i1\b")


def for_this_cpu(program: str) -> str:
    """A module whose kernel takes the unified buffer and its place in the grid behind its own arguments.

    program  all that the compiler printed of its last module, and what it said after

    Raises ValueError for a line of another release, or one whose meaning is not known here.
    """
    lines = program.split("\n}", 1)[0].splitlines()
    return "\n".join([*_module(iter(lines)), "}", ""])


def _module(lines: Iterator[str]) -> Iterator[str]:
    buffers = _Buffers()
    for line in lines:
        if line.startswith("module attributes"):
            yield "module {"
        elif _HOST in line:
            for inside in lines:
                if inside == "  }":
                    break
        elif "func.func" in line:
            yield _head(_SPACE.sub("", line))
        else:
            yield from _instruction(_HINTS.sub("}", _SPACE.sub("", line).strip()), buffers)


def _head(line: str) -> str:
    if "func.func private" in line:
        bare = _ATTRIBUTES.sub(" attributes {llvm.emit_c_interface}", line)
        return _DECLARED.sub(lambda found: f"@{found[1]}_{_operands(found[2])}({found[2]})", bare)
    bare = _ARGUMENT.sub(r"\1", _ATTRIBUTES.sub("", line).rstrip(")"))
    return f"{bare}, %buffer: {BUFFER}, %block: i64) {{"


def _operands(types: str) -> int:
    """How many types a list of them has."""
    return len(re.sub(r"<[^<>]*(<[^<>]*>)?[^<>]*>", "", types).split(","))


def _instruction(text: str, buffers: _Buffers) -> Iterator[str]:
    if _WAITS.match(text):
        return
    if found := _CALL.match(text):
        head, name, given, rest = found.groups()
        yield f"{head}@{name}_{given.count(',') + 1}({given}){rest}"
    elif found := _BUFFER.match(text):
        yield from buffers.placed(*found.groups())
    elif found := _CHOICE.match(text):
        yield from buffers.chosen(*found.groups())
    elif found := _SAME_BITS.match(text):
        yield from buffers.retyped(*found.groups())
    elif found := _BLOCK.match(text):
        yield f"{found[1]} = arith.ori %block, %block : i64"
    elif found := _ROW.match(text):
        name, rows, kind, size, row = found.groups()
        if size == "?":
            axis, size = f"%axis_{name[1:]}", f"%size_{name[1:]}"
            yield f"{axis} = arith.constant 1 : index"
            yield f"{size} = memref.dim {rows}, {axis} : {kind}"
        yield f"{name} = memref.subview {rows}[0, 0] [1, {size}] [1, 1] : {kind} to {row}"
    elif "hivm." in text or "hacc." in text or _TRUTH.search(text):
        raise ValueError(f"an instruction that is not known here: {text}")
    else:
        yield text


class _Buffers:
    """Pieces of the unified buffer, and choices among them: their bits may be asked for under another type."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._choices: dict[str, tuple[str, str, str]] = {}

    def placed(self, name: str, place: str, kind: str) -> Iterator[str]:
        self._places[name] = at = f"%at_{name[1:]}"
        yield f"{at} = arith.index_cast {place} : i64 to index"
        yield f"{name} = memref.view %buffer[{at}][] : {BUFFER} to {kind}"

    def chosen(self, name: str, which: str, first: str, other: str, kind: str) -> Iterator[str]:
        self._choices[name] = which, first, other
        branches = (f"{{ scf.yield {one} : {kind} }}" for one in (first, other))
        yield f"{name} = scf.if {which} -> ({kind}) {' else '.join(branches)}"

    def retyped(self, name: str, source: str, kind: str) -> Iterator[str]:
        if source in self._places:
            yield f"{name} = memref.view %buffer[{self._places[source]}][] : {BUFFER} to {kind}"
        elif source in self._choices:
            which, *both = self._choices[source]
            first, other = f"%as_{name[1:]}_first", f"%as_{name[1:]}_other"
            for fresh, one in zip((first, other), both, strict=True):
                yield from self.retyped(fresh, one, kind)
            yield from self.chosen(name, which, first, other, kind)
        else:
            raise ValueError(f"{name}: the bits of {source}, which is no place of the buffer, are not known here")
