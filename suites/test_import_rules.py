"""Imports follow the arrows `suites -> harness -> {reference, kernels}`, and sources keep a few promises more.

Each rule is a function of a root that returns the places which break it; its twin proves that it can.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("suites", "harness", "reference", "kernels")

# Which rooms a room may import, itself aside. Only one provider of the harness reaches for the kernels.
ARROWS = {"suites": {"harness", "reference", "kernels"}, "harness": {"reference"}, "reference": set(), "kernels": set()}
KERNEL_DOOR = "harness/providers/ours.py"

# What reference/ may import beside the standard library.
REFERENCE_LIBRARIES = {"torch"}
WEIGHTS = ("reference/weights.py", "safetensors")

# Libraries that most machines lack: the harness imports them inside the function that needs them.
VENDOR_LIBRARIES = frozenset({"transformers", "vllm", "sglang", "flashinfer", "triton", "torch_npu", "ray"})

# Public names that torch 2.13.0 declares and 2.7.1, of the newest series that Ascend hosts have, does not.
NEWER_THAN_TORCH_2_7 = {
    "torch": "AcceleratorError float4_e2m1fn_x2 hash_tensor thread_safe_generator",
    "torch.accelerator": (
        "Graph device_index empty_cache empty_host_cache get_device_capability get_memory_info "
        "max_memory_allocated max_memory_reserved memory_allocated memory_reserved memory_stats "
        "reset_accumulated_memory_stats reset_peak_memory_stats"
    ),
    "torch.backends": "flags fp32_precision miopen set_flags",
    "torch.compiler": "get_default_backend load_compiled_function nested_compile_region set_default_backend",
    "torch.cuda": "GreenContext caching_allocator_disabled green_contexts",
    "torch.func": "rearrange",
    "torch.library": "EffectType get_kernel",
    "torch.nn.attention": "activate_flash_attention_impl register_flash_attention_impl varlen",
    "torch.nn.functional": "ScalingType SwizzleType grouped_mm linear_cross_entropy scaled_grouped_mm scaled_mm",
    "torch.optim": "Muon",
}
OLD_TORCH_FOLDERS = ("reference", "harness", "kernels/npu")

CLOSENESS_CALLS = ("allclose", "assert_close", "isclose", "approx", "assert_allclose", "assert_almost_equal")
CLOSENESS_KEYWORDS = ("atol", "rtol", "rel_tol", "abs_tol")

MODULE_NAME = re.compile(r"minimax_m2\.[\w.]*$")


def modules(root: Path, *folders: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield (name relative to the root, source, tree) of each Python file below the folders."""
    for folder in folders or ROOMS:
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text()
            yield path.relative_to(root).as_posix(), source, ast.parse(source)


def imports(name: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of each imported thing; `from a import b` yields `a.b`."""
    package = ["minimax_m2", *Path(name).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (start, node.module) if part)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def named_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each string that begins like one of our modules, which importlib may be given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and MODULE_NAME.match(str(node.value)):
            yield node.lineno, str(node.value)


def wrong_arrows(root: Path) -> list[str]:
    """A room imports only the rooms its arrows lead to, always by the one import root."""
    found = []
    for name, _, tree in modules(root):
        room = name.split("/")[0]
        allowed = ARROWS[room] | {room} | ({"kernels"} if name == KERNEL_DOOR else set())
        # A test may name any module in a string: it does not import it.
        strings = named_modules(tree) if room != "suites" else ()
        for line, target in (*imports(name, tree), *strings):
            head, *rest = target.split(".")
            if head in ROOMS or head == "conftest":
                found.append(f"{name}:{line} imports {target}, which is no module of minimax_m2")
            elif head == "minimax_m2" and rest and rest[0] == "suites":
                found.append(f"{name}:{line} imports {target}: nothing imports suites")
            elif head == "minimax_m2" and rest and rest[0] not in allowed:
                found.append(f"{name}:{line} imports {target}: {room} may import {', '.join(sorted(allowed))}")
    return found


def relative_imports(root: Path) -> list[str]:
    """Imports are absolute: pytest --pyargs loads a module under a shorter name, where `.` is a second copy of us."""
    return [
        f"{name}:{node.lineno} imports by dots; write minimax_m2.{name.split('/')[0]}"
        for name, _, tree in modules(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def reference_libraries(root: Path) -> list[str]:
    """reference/ imports the standard library and torch; weights.py reads safetensors too."""
    found = []
    for name, _, tree in modules(root, "reference"):
        allowed = sys.stdlib_module_names | REFERENCE_LIBRARIES | {"minimax_m2"}
        allowed |= {WEIGHTS[1]} if name == WEIGHTS[0] else set()
        for line, target in imports(name, tree):
            if target.split(".")[0] not in allowed:
                found.append(f"{name}:{line} imports {target}; reference/ has torch and the standard library")
    return found


def eager_vendors(root: Path) -> list[str]:
    """The harness imports an accelerator's or engine's library only inside a function."""
    found = []
    for name, _, tree in modules(root, "harness"):
        outside = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        for line, target in imports(name, outside):
            if target.split(".")[0] in VENDOR_LIBRARIES:
                found.append(f"{name}:{line} imports {target} at import time; move it into the function that needs it")
    return found


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """Return the full dotted name of `a.b.c`, with the first name resolved through the file's imports."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute):
        start = dotted(node.value, aliases)
        return start and f"{start}.{node.attr}"
    return None


def bound_names(tree: ast.AST) -> dict[str, str]:
    """Return what each name that an import binds stands for: `F` is torch.nn.functional."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            plain = {alias.name.split(".")[0] for alias in node.names if not alias.asname}
            bound |= {name: name for name in plain} | {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return bound


def new_torch_names(root: Path) -> list[str]:
    """reference/, harness/ and kernels/npu/ use no name newer than torch 2.7."""
    found = []
    for name, _, tree in modules(root, *OLD_TORCH_FOLDERS):
        aliases = bound_names(tree)
        used = [(node.lineno, dotted(node, aliases)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        for line, target in (*imports(name, tree), *used):
            module, _, last = (target or "").rpartition(".")
            if last in NEWER_THAN_TORCH_2_7.get(module, "").split():
                found.append(f"{name}:{line} uses {target}, which torch 2.7 lacks")
    return found


def constant_tolerances(root: Path) -> list[str]:
    """A comparison by tolerance stands under a comment `derived: ...`, or asks for equality with literal zeros."""
    found = []
    for name, source, tree in modules(root):
        lines = ["", *source.splitlines()]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            limits = [keyword.value for keyword in node.keywords if keyword.arg in CLOSENESS_KEYWORDS]
            zeros = [limit for limit in limits if isinstance(limit, ast.Constant) and limit.value == 0]
            is_derived = any("# derived: " in line for line in lines[node.lineno - 1 : node.lineno + 1])
            if (called in CLOSENESS_CALLS or limits) and len(zeros) != 2 and not is_derived:
                found.append(f"{name}:{node.lineno} compares by a tolerance that nothing derives; see harness/budget")
    return found


def reruns(root: Path) -> list[str]:
    """No test runs again until it passes."""
    return [
        f"{name}:{node.lineno} marks a test flaky"
        for name, _, tree in modules(root, "suites", "harness")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "flaky"
    ]


RULES = [
    wrong_arrows,
    relative_imports,
    reference_libraries,
    eager_vendors,
    new_torch_names,
    constant_tolerances,
    reruns,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_keep_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def plant(root: Path, name: str, source: str) -> None:
    """Write one source of a made-up tree."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(source)


@pytest.mark.parametrize(
    "rule, name, source",
    [
        (wrong_arrows, "suites/test_gate.py", "from minimax_m2.kernels.cpu import gate"),
        (wrong_arrows, "harness/case.py", "from minimax_m2.reference import gate"),
        (wrong_arrows, "harness/providers/ours.py", "name = f'minimax_m2.kernels.{device}.{op}'"),
        (wrong_arrows, "harness/ops/gate.py", "from ..case import Case"),
        (relative_imports, "harness/ops/gate.py", "from minimax_m2.harness.case import Case"),
        (wrong_arrows, "harness/cli.py", "'''Runs minimax_m2.kernels too.'''\nimport minimax_m2"),
        (reference_libraries, "reference/weights.py", "import safetensors.torch, json, torch"),
        (eager_vendors, "harness/providers/vllm.py", "def load(): import vllm"),
        (new_torch_names, "harness/case.py", "import torch\nx = torch.accelerator.is_available()"),
        (new_torch_names, "kernels/cpu/gate.py", "import torch\nx = torch.accelerator.empty_cache()"),
        (constant_tolerances, "suites/test_x.py", "assert_close(a, b, atol=0, rtol=0)"),
        (constant_tolerances, "suites/test_x.py", "# derived: 2 roundings of u = 2^-53\nallclose(a, b, atol=2**-52)"),
        (reruns, "suites/test_x.py", "@pytest.mark.nightly\ndef test(): ..."),
    ],
)
def test_a_clean_source_passes(tmp_path: Path, rule: Callable[[Path], list[str]], name: str, source: str) -> None:
    plant(tmp_path, name, source)
    assert rule(tmp_path) == []


@pytest.mark.parametrize(
    "rule, name, source",
    [
        (wrong_arrows, "harness/case.py", "import minimax_m2.kernels.cpu.gate"),
        (wrong_arrows, "harness/providers/vllm.py", "from minimax_m2 import kernels"),
        (wrong_arrows, "harness/matrix.py", "import_module(f'minimax_m2.kernels.{device}.gate')"),
        (wrong_arrows, "reference/gate.py", "from minimax_m2.harness.budget import Budgeted"),
        (wrong_arrows, "reference/gate.py", "def gate():\n    from ..kernels.cpu import gate"),
        (wrong_arrows, "kernels/cpu/gate.py", "from minimax_m2.reference import gate"),
        (wrong_arrows, "harness/case.py", "from minimax_m2.suites import test_gate"),
        (wrong_arrows, "suites/test_gate.py", "from suites.test_case import draw"),
        (wrong_arrows, "suites/test_gate.py", "import reference.gate"),
        (relative_imports, "harness/ops/gate.py", "from ..case import Case"),
        (reference_libraries, "reference/gate.py", "import numpy"),
        (reference_libraries, "reference/gate.py", "from safetensors import safe_open"),
        (eager_vendors, "harness/providers/vllm.py", "try:\n    import vllm\nexcept ImportError:\n    pass"),
        (new_torch_names, "reference/gate.py", "import torch\nx = torch.nn.functional.grouped_mm(a, b)"),
        (new_torch_names, "harness/case.py", "import torch.nn.functional as F\nx = F.grouped_mm(a, b)"),
        (new_torch_names, "harness/case.py", "from torch.nn import functional as F\nx = F.grouped_mm(a, b)"),
        (new_torch_names, "kernels/npu/gate.py", "from torch.accelerator import empty_cache"),
        (constant_tolerances, "suites/test_x.py", "torch.allclose(a, b)"),
        (constant_tolerances, "suites/test_x.py", "torch.testing.assert_close(a, b, atol=1e-3, rtol=0)"),
        (constant_tolerances, "harness/verdict.py", "compare(a, b, rtol=1e-5)"),
        (constant_tolerances, "suites/test_x.py", "assert a == pytest.approx(b)"),
        (reruns, "suites/test_x.py", "@pytest.mark.flaky(reruns=3)\ndef test(): ..."),
    ],
)
def test_each_rule_can_fail(tmp_path: Path, rule: Callable[[Path], list[str]], name: str, source: str) -> None:
    plant(tmp_path, name, source)
    assert rule(tmp_path) != []
