"""Level N2: the device program that Huawei's compiler plans, as far as its open part goes: buffers, loops, calls.

What is read here is what the compiler wrote; no cycle is counted, because the closed part is what knows cycles.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from minimax_m2.harness.npu.toolchain import Answer

# The unified buffer of a vector core, and how much of it a kernel of ours may take: another release of the compiler
# plans differently.
BUFFER_BYTES = 192 * 1024
MOST_BYTES = BUFFER_BYTES * 9 // 10
# A longer name is cut at its end by the run time, a larger grid does not start.
LONGEST_NAME, LARGEST_GRID = 49, 65535

_BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2, "i16": 2, "i64": 8, "i8": 1, "i1": 1}
_DUMP = re.compile(r"// -----// IR Dump After \w+ \(([\w-]+)\) //----- //\n")
_BUFFER = re.compile(r"pointer_cast\(([^)]*)\).*? : memref<((?:\d+x)*)(\w+), #hivm\.address_space<ub>>")
_CONSTANT = re.compile(r"(%\w+) = arith\.constant (\d+) : i64")
_PLACE = re.compile(r"memref\.(?:load|store) [^\[]*\[([^\]]+)\]")
_FIXED = re.compile(r"%c\d+(_\w+)?")
_SINGLE = "enable-auto-multi-buffer to false"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned kernel.

    buffer_bytes   the highest byte of the unified buffer that it touches
    scalar_loops   innermost loops that move single numbers: what no vector instruction does
    vector_calls   calls into the device's library of vector, copy and cube instructions
    is_single_buffered  whether the compiler gave up overlapping copies with arithmetic, to fit at all
    """

    buffer_bytes: int
    scalar_loops: int
    vector_calls: int
    is_single_buffered: bool

    @property
    def buffer_share(self) -> float:
        """Of the unified buffer, 0 to 1."""
        return self.buffer_bytes / BUFFER_BYTES


def plan_of(answer: Answer) -> Plan:
    """Read the plan of an answer to the stage ``plan``. Raises ValueError where the program was not printed."""
    return read((answer.folder / "planned.mlir").read_text(), notes=answer.found["notes"])


def program_of(answer: Answer) -> str:
    """The last program of the open part, with its maps."""
    return _dumps((answer.folder / "planned.mlir").read_text())[1][-1]


def read(text: str, *, notes: list[str]) -> Plan:
    """Read a plan off what the compiler printed after planning buffers and after lowering to calls."""
    plans, programs = _dumps(text)
    program = programs[-1].rpartition("func.func @")[2]
    return Plan(
        buffer_bytes=max(_highest(plan) for plan in plans),
        scalar_loops=_scalar_loops(program),
        vector_calls=len(re.findall(r"\bcall @", program)),
        is_single_buffered=any(_SINGLE in note for note in notes),
    )


def _dumps(text: str) -> tuple[list[str], list[str]]:
    """What was printed after planning buffers and after lowering to calls. Raises ValueError where one is missing."""
    # Functions are planned side by side and printed as each is done: the kernel's, twice, and one that says its kind.
    parts = _DUMP.split(text)
    plans, programs = (
        [dump for name, dump in zip(parts[1::2], parts[2::2], strict=True) if name == wanted]
        for wanted in ("hivm-plan-memory", "convert-hivm-to-std")
    )
    for name, found in (("hivm-plan-memory", plans), ("convert-hivm-to-std", programs)):
        if not found:
            raise ValueError(f"the compiler printed no program after {name}; it is of another release")
    return plans, programs


def _highest(program: str) -> int:
    offsets = {name: int(value) for name, value in _CONSTANT.findall(program)}
    ends = [
        offsets[place.strip()] + math.prod(int(size) for size in shape.split("x")[:-1]) * _BYTES[kind]
        for places, shape, kind in _BUFFER.findall(program)
        for place in places.split(",")
    ]
    return max(ends, default=0)


def _scalar_loops(program: str) -> int:
    """Innermost loops that read or write single numbers at places that change with the loop."""
    found = 0
    open_loops: list[dict[str, int]] = []
    for line in program.splitlines():
        if re.search(r"\bscf\.(for|while)\b", line):
            for loop in open_loops:
                loop["inner"] = 0
            open_loops.append({"inner": 1, "scalar": 0, "indent": len(line) - len(line.lstrip())})
        elif (place := _PLACE.search(line)) and not all(map(_FIXED.fullmatch, place[1].split(", "))) and open_loops:
            open_loops[-1]["scalar"] = 1
        elif open_loops and line.strip().startswith("}") and len(line) - len(line.lstrip()) == open_loops[-1]["indent"]:
            loop = open_loops.pop()
            found += bool(loop["inner"] and loop["scalar"])
    return found
