"""Level G1: the Triton kernels that a call launches, compiled for a GPU that need not be here.

A call on CPU tensors is intercepted at its launches; each is then compiled for a compute capability and its machine
code read: registers, spills, shared memory, kinds of instruction.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CAPABILITIES = (80, 90, 100, 120)

_POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: the kernel, the types of its arguments, its constants and its options."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def with_options(self, **options: int) -> Launch:
        """The same launch under other compiler options."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True, slots=True)
class Cubin:
    """What the machine code of a kernel needs and does."""

    kernel: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: frozenset[str]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record the launches of the calls made inside instead of running them; their outputs stay unwritten."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(launch_of(self, args, kwargs))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def launch_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Type a launch as Triton's own specialisation would: None and 1 are constants, sizes divisible by 16 are known."""
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, args, strict=False)) | {n: v for n, v in kwargs.items() if n in names}
    options = {n: v for n, v in kwargs.items() if n not in names}
    signature, constants, aligned = {}, {}, []
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            aligned.append(name)
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [name] if value % 16 == 0 else []
        else:
            signature[name] = "fp32"
    return Launch(kernel, signature, constants, tuple(aligned), options)


def compiled(launch: Launch, capability: int) -> Cubin:
    """Compile a launch for ``sm_<capability>`` and read its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    names = [parameter.name for parameter in launch.kernel.params]
    source = (GluonASTSource if launch.kernel.is_gluon() else ASTSource)(
        launch.kernel, signature=launch.signature,
        constexprs={(names.index(n),): v for n, v in launch.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in launch.aligned},
    )  # fmt: skip
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    usage, listing = _read(done.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage for {launch.name} on sm_{capability}: {usage!r}")
    return Cubin(
        launch.name, capability, int(found[1]), int(found[2]), done.metadata.shared,
        frozenset(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", listing)),
    )  # fmt: skip


def _read(cubin: bytes) -> tuple[str, str]:
    """Resource usage and disassembly, by the tools that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        return _output(tools / "cuobjdump", "--dump-resource-usage", file), _output(tools / "nvdisasm", "-c", file)


def _output(tool: Path, *arguments: object) -> str:
    return subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call."""
    with recorded() as launches:
        call()
    return launches
