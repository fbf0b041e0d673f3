"""A wrong step as a folder of its own: inputs, what is right, and a script that needs torch and the provider only.

    inputs.safetensors    the step's arguments, packed ones by their parts: the fewest rows and columns that fail
    expected.safetensors  what is right: per output the value, its standard deviation and the limit of each element;
                          of a router the scores and how far they may stray
    meta.json             the place, the op, the other arguments, the test that fails and its limit
    repro.py              runs the provider and ends in 1 where it is still wrong, 125 where it cannot be loaded

The script has been run, and was wrong, before a folder is there.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.drift.calls import Call, described, only_active
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.ddmin import ddmin
from minimax_m2.harness.drift.lockstep import Cell, Judge, strictest
from minimax_m2.harness.expectation import Expectation, Outputs, Tensors, expectation
from minimax_m2.harness.judge import ALPHA_OF_A_CALL
from minimax_m2.harness.limits import limits
from minimax_m2.harness.op import Pack
from minimax_m2.harness.quantiles import two_sided_normal
from minimax_m2.harness.repro import NotWritten
from minimax_m2.harness.shrink import given
from minimax_m2.harness.ties import Choice

SCRIPT = Path(__file__).with_name("repro_script.py")
MOST_LINES = 60
SECONDS = 120
# Arguments that hold one entry a token, by op; attention's rows hang together by their sequences.
ROWS: dict[str, tuple[str, ...]] = {
    "rms_norm": ("x",),
    "add_rms_norm": ("x", "residual"),
    "linear": ("x",),
    "fp8_linear": ("x",),
    "lm_head": ("x",),
    "router_gemm": ("x",),
    "router": ("x",),
    "routing": ("logits",),
    "experts": ("x", "weights", "ids"),
    "qk_norm_rope": ("qkv", "positions"),
    "qk_norm_rope_cache": ("qkv", "positions", "slots"),
    "embedding": ("ids",),
    "swiglu": ("gate_up",),
}
COLUMNS = {"linear": "weight", "lm_head": "weight"}


def write_repro(call: Call, candidate: Candidate, folder: Path, *, seconds: float = 30.0) -> Path:
    """Write a call that a candidate fails into ``folder``, as small as was found in ``seconds``.

    Raises NotWritten where the call does not fail, the provider cannot be loaded by a script, or the script passes.
    """
    provider = candidate.at(call.place)
    small = smallest(call, candidate, seconds=seconds)
    cell, right, outputs = _judged(small, candidate)
    if not cell.is_wrong:
        raise NotWritten(f"layer {call.layer}, {call.step} is within its budget: there is no failure")
    found = max(right.judge(outputs, alpha=ALPHA_OF_A_CALL), key=lambda c: c.utilisation) if outputs else None
    tensors, plain = _stored(small.arguments)
    expected, failing = _expected(right, outputs, found)
    op = call.op
    meta = {
        "op": op.name,
        "layer": call.layer,
        "step": call.step,
        "phase": call.phase,
        "provider": {"name": provider.name, "file": _file(provider.source), "variant": candidate.variant_of(provider)},
        "positional": [name for name in op.positional() if name in small.arguments],
        "arguments": list(small.arguments),
        "packs": {name: v.function for name, v in small.arguments.items() if isinstance(v, Pack)},
        "plain": plain,
        "outputs": [*(name for name in op.outputs if name not in op.mutates), *op.mutates],
        "written": list(op.mutates),
        "sizes": {k: v for k, v in described(small).items() if isinstance(v, int)},
        "fails": failing,
        "evidence": list(cell.evidence),
    }
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        save_file({k: v.contiguous() for k, v in tensors.items()}, made / "inputs.safetensors")
        save_file({k: v.contiguous() for k, v in expected.items()}, made / "expected.safetensors")
        (made / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        shutil.copyfile(SCRIPT, made / "repro.py")
        done = subprocess.run([sys.executable, "repro.py"], cwd=made, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode != 1:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise NotWritten(f"the script ends in {done.returncode}, not in 1: {' '.join(said)}")
        folder.mkdir(parents=True, exist_ok=True)
        for file in made.iterdir():
            shutil.copyfile(file, folder / file.name)
    return folder


def smallest(call: Call, candidate: Candidate, *, seconds: float) -> Call:
    """The call with as few experts, rows, then columns, as fail in the same way."""
    until, outcome = time.monotonic() + seconds, _judged(call, candidate)[0].outcome

    def fails(smaller: Call) -> bool:
        return time.monotonic() < until and _judged(smaller, candidate)[0].outcome == outcome

    def fewest(call: Call, cut: Callable[[Call, Tensor], Call], count: int) -> Call:
        def still(part: Sequence[int]) -> bool:
            return fails(cut(call, torch.tensor(part, dtype=torch.long)))

        if count < 2 or not still(range(count)):
            return call
        return cut(call, torch.tensor(ddmin(range(count), still), dtype=torch.long))

    found = fewest(call, _with_rows, _rows(call))
    found = fewest(found, _with_columns, _columns(found))
    # A kernel may be wrong about an expert by its number.
    few = only_active(found)
    return few if fails(few) else found


def _rows(call: Call) -> int:
    names = ROWS.get(call.op.name, ())
    return len(call.arguments[names[0]]) if names else 0


def _with_rows(call: Call, rows: Tensor) -> Call:
    chosen = {name: call.arguments[name][rows] for name in ROWS[call.op.name]}
    return replace(call, arguments=call.arguments | chosen)


def _columns(call: Call) -> int:
    name = COLUMNS.get(call.op.name)
    return len(call.arguments[name]) if name else 0


def _with_columns(call: Call, columns: Tensor) -> Call:
    name = COLUMNS[call.op.name]
    size = {"vocab_size": len(columns)} if "vocab_size" in call.arguments else {}
    return replace(call, arguments=call.arguments | {name: call.arguments[name][columns]} | size)


def _judged(call: Call, candidate: Candidate) -> tuple[Cell, Expectation, Outputs]:
    """The cell, what was right, and what was returned; no outputs where the call raised."""
    judge = Judge()
    provider, case = candidate.at(call.place), described(call)
    contract = call.op.full_contract(case, provider.contract.get(call.op.name, {}))
    right = expectation(given(call.op, call.arguments), case, contract)
    cell = judge.cell(call, candidate)
    function = candidate.function(call.op.name, call.place)
    if function is None or cell.test in ("call", "layout"):
        return cell, right, ()
    with provider.enter(candidate.variant_of(provider)):
        return cell, right, judge.outputs(call, provider, function)


def _file(source: str) -> str:
    return str(Path(source).resolve()) if source.endswith(".py") else ""


def _stored(arguments: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by dotted name; what is none, as JSON can hold it."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        parts = value.arguments if isinstance(value, Pack) else {"": value}
        for part, inner in parts.items():
            key = f"{name}.{part}" if part else name
            if isinstance(inner, Tensor):
                tensors[key] = inner.clone()
            elif isinstance(inner, torch.dtype):
                plain[key] = {"dtype": str(inner).removeprefix("torch.")}
            else:
                plain[key] = list(inner) if isinstance(inner, tuple) else inner
    return tensors, plain


def _expected(
    right: Expectation, outputs: Outputs, found: Comparison | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the script compares with, and the test that fails: its output, its name, its limit."""
    if isinstance(right, Choice):
        tau = two_sided_normal(ALPHA_OF_A_CALL / (10 * right.selection.value.numel()))
        reach = torch.minimum(tau * right.selection.sigma, right.selection.bound)
        ids = right.perfect()[1].long()
        weights = right.weigh(ids)
        stored = {"selection": right.selection.value, "reach": reach, "ids": ids, "weights": weights.value}
        room = float(torch.minimum(tau * weights.sigma, weights.bound).max())
        return stored, {"output": found.output if found else "", "test": "routing", "limit": room}
    if not isinstance(right, Tensors):
        raise NotWritten(f"{right.op.name} has outputs that a script cannot compare")
    stored = {}
    for name, value in right.expected.items():
        budgeted = value if isinstance(value, Budgeted) else Budgeted.exact(value)
        element = limits(budgeted, right.dtypes[name], ALPHA_OF_A_CALL / len(right.expected)).element
        stored |= {f"{name}.value": budgeted.value, f"{name}.sigma": budgeted.sigma, f"{name}.limit": element}
    if found is None:
        return stored, {"output": "", "test": "call", "limit": 0.0}
    test = "element" if found.tests.get("element", 0.0) > 1 else strictest(found)
    place = list(right.expected).index(found.output)
    name = found.output
    error, sigma = outputs[place].double() - stored[f"{name}.value"], stored[f"{name}.sigma"]
    seen = statistic(test, error, stored[f"{name}.value"], sigma, stored[f"{name}.limit"])
    share = found.tests[test]
    limit = 1.0 if test == "element" else seen / share if math.isfinite(share) and share else 0.0
    return stored, {"output": name, "test": test, "limit": limit}


def statistic(test: str, error: Tensor, value: Tensor, sigma: Tensor, limit: Tensor) -> float:
    """What the script computes of an output, too: an error over its limit, a mean square, a projection."""
    if test == "element":
        return float(torch.where(limit > 0, error.abs() / limit, error.abs() * torch.inf).nan_to_num(torch.inf).max())
    z = torch.where(sigma > 0, error / sigma, 0.0)
    if test == "gain":
        along = torch.where(sigma > 0, value / sigma, 0.0)
        return float((z * along).sum().abs() / along.norm())
    square = z.square().reshape(-1, z.shape[-1])
    means = {"mean": square.mean(), "row": square.mean(-1).max(), "column": square.mean(0).max()}
    return float(means[test])
