"""Runs in the toolchain's own Python, which has Huawei's compilers and neither torch nor this package.

A request is a line of JSON on stdin, its answer a line of JSON on stdout. A request names a Triton function's file and
the folder that stands for ``minimax_m2.kernels.npu``, the types of its arguments and its constants, a card, a folder to
write to and the stage to reach:

    lower     Triton's IR, then the adapter's: tensors of Linalg, as Huawei's compiler takes them
    plan      the device program with its buffers planned, as far as the closed back end
    execute   an object of the lowered tensors for this CPU
    assemble  an object of ``program.mlir`` in the folder for this CPU; only the folder is named

An answer has ``error`` where the compiler refused: that is a finding, not a failure of this process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

# The only text that Huawei's compiler ends with when all of its open part went well.
BOUNDARY = "External hivmc run fails, returning module before running external compiler"
PLANNING = [
    "--enable-auto-multi-buffer=True", "--enable-auto-bind-sub-block=True", "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true", "--enable-triton-kernel-compile=true",
]  # fmt: skip

# From tensors to loops over memory; a copy between memories becomes a loop, too, and needs no run-time library.
TO_MEMORY = (
    "builtin.module(convert-elementwise-to-linalg,func.func(linalg-generalize-named-ops),canonicalize,"
    "eliminate-empty-tensors,empty-tensor-to-alloc-tensor,one-shot-bufferize{allow-return-allocs-from-loops=true "
    "bufferize-function-boundaries=false},buffer-deallocation-pipeline)"
)
TO_LLVM = (
    "builtin.module(func.func(convert-linalg-to-loops),arith-emulate-unsupported-floats{source-types=bf16 "
    "target-type=f32},expand-strided-metadata,lower-affine,func.func(arith-expand{include-bf16=true}),"
    "convert-scf-to-cf,convert-math-to-llvm,convert-math-to-libm,convert-arith-to-llvm,convert-index-to-llvm,"
    "finalize-memref-to-llvm,convert-func-to-llvm,convert-cf-to-llvm,lower-affine,convert-arith-to-llvm,"
    "reconcile-unrealized-casts)"
)
COPY = re.compile(r"memref\.copy (%[^ ,]+), (%[^ ,]+) : (memref<.*>) to (memref<.*>)")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Take one request as far as it asks."""
    folder = Path(request["out"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if request["stage"] == "assemble":
            return assembled((folder / "program.mlir").read_text(), request, folder)
        found = lowered(request, folder)
        if request["stage"] == "plan":
            found |= planned(request, folder)
        if request["stage"] == "execute":
            found |= library(request, folder)
    except (subprocess.CalledProcessError, Refused) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return {"error": str(said).strip()[-4000:]}
    return found


class Refused(Exception):
    """A compiler did not take a kernel; the text says why."""


def lowered(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Lower a kernel to ``lowered.mlir``."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    target = GPUTarget("npu", request["card"], 0)
    backend = make_backend(target)
    source = ASTSource(function(request), signature=request["signature"], constants=request["constants"])
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options)
    metadata = {"hash": "none", "target": target, **options.__dict__}
    try:
        module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
        text = str(stages["ttadapter"](stages["ttir"](module, metadata), metadata))
    except subprocess.CalledProcessError:
        raise
    # Triton's compiler has no common class of errors: whatever it raises is its refusal of the kernel.
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    (folder / "lowered.mlir").write_text(text)
    mode = re.search(r'mix_mode = "(\w+)"', text)
    return {"mix_mode": mode[1] if mode else "", "lowered_lines": text.count("\n")}


def function(request: dict[str, Any]) -> Any:
    """The Triton function, from its file; kernel files find each other under the names that they import by."""
    path = ""
    for name, place in (("minimax_m2", None), ("kernels", None), ("npu", request["kernels"])):
        path = f"{path}.{name}".strip(".")
        package = types.ModuleType(path)
        package.__path__ = [place] if place else []
        sys.modules[path] = package
    spec = importlib.util.spec_from_file_location("kernel_file", request["file"])
    if spec is None or spec.loader is None:
        raise Refused(f"{request['file']} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, request["kernel"])


def planned(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run Huawei's compiler as far as it is open; its last program is ``planned.mlir``."""
    import ascendnpuir

    tools = Path(ascendnpuir.__file__).parent / "bin"
    source = folder / "for_device.mlir"
    source.write_text(re.sub(r', mix_mode = "[^"]*"', "", (folder / "lowered.mlir").read_text()))
    done = subprocess.run(
        [str(tools / "bishengir-compile"), str(source), f"--target={request['card']}", *PLANNING,
         "--mlir-print-ir-after=hivm-plan-memory", "--mlir-print-ir-after=convert-hivm-to-std",
         "-o", str(folder / "unwritten")],
        capture_output=True, text=True, check=False,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    (folder / "planned.mlir").write_text(said)
    told = [line for line in said.splitlines() if "error:" in line and "hivmc" not in line]
    if BOUNDARY not in said or told:
        raise Refused("\n".join(told) or said[-2000:])
    notes = [line for line in said.splitlines() if "note:" in line.lower() or "NOTE" in line]
    return {"reached": "hivmc", "notes": notes}


def library(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compile the lowered tensors for this CPU."""
    tools = Path(request["mlir"])
    memory = subprocess.run(
        [str(tools / "mlir-opt"), str(folder / "lowered.mlir"), "--allow-unregistered-dialect",
         f"--pass-pipeline={TO_MEMORY}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return assembled(COPY.sub(r"linalg.copy ins(\1 : \3) outs(\2 : \4)", memory), request, folder)


def assembled(program: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compile a program of loops over memory for this CPU: ``kernel.o``."""
    import llvmlite.binding as llvm

    tools = Path(request["mlir"])
    low = subprocess.run(
        [str(tools / "mlir-opt"), "--allow-unregistered-dialect", f"--pass-pipeline={TO_LLVM}"],
        input=program, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    text = subprocess.run(
        [str(tools / "mlir-translate"), "--mlir-to-llvmir", "--allow-unregistered-dialect"],
        input=low, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    # Without contraction of products and sums: a device's vector unit rounds each.
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, reloc="pic", codemodel="default")
    (folder / "kernel.o").write_bytes(machine.emit_object(module))
    return {"object": "kernel.o"}


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
