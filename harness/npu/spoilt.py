"""Our NPU kernels with a line changed, as a provider file: each level must find what is wrong with them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "npu"
FILE = """
import sys
from importlib import import_module

import minimax_m2.kernels.npu as npu

# Before ours, none of which may be imported already.
assert not [name for name in sys.modules if name.startswith("minimax_m2.kernels.npu.")]
npu.__path__.insert(0, {folder!r})
_module = import_module("minimax_m2.kernels.npu.{stem}")
{op} = _module.{op}
contract = {{"{op}": getattr(_module, "contract", {{}})}}
"""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """One line of a kernel's file, what stands in its place, and an op that runs it."""

    file: str
    op: str
    right: str
    wrong: str


# One a file of kernels at least: what no fault reaches, no level judges.
FAULTS = {
    "the largest sum for all": Spoilt(
        "rms_norm_rows", "rms_norm", "tl.sum(tl.sum(squares, 1), 0) /", "tl.max(tl.sum(squares, 1), 0) /"
    ),
    "one residual for all rows": Spoilt(
        "rms_norm_rows", "add_rms_norm", "residual_ptr + at * residual_stride", "residual_ptr + 0 * residual_stride"
    ),
    "one scale for all columns": Spoilt(
        "block_dequant_rows", "block_dequant", "block_row * scale_columns + group", "block_row * scale_columns"
    ),
    "the second half of a pair turned back": Spoilt(
        "qk_norm_rope_whole", "qk_norm_rope", "b * cos + a * sin", "b * cos - a * sin"
    ),
    "a load left out": Spoilt(
        "qk_norm_rope_rows", "rope", "b = tl.load(x + HALF + turn, mask=turns, other=0.0)",
        "b = tl.load(x + turn, mask=turns, other=0.0)",
    ),
    "a square that is none": Spoilt("qk_norm_rope_rows", "qk_sum_squares", "sums += x * x", "sums += x"),
    "the bias weighs, too": Spoilt(
        "routing_rows", "routing", "tl.sum(tl.where(hit, scores, 0.0), 0)", "tl.sum(tl.where(hit, selection, 0.0), 0)"
    ),
    "the other half gates": Spoilt("swiglu_rows", "swiglu", "gate * sigmoid(gate) * up", "gate * sigmoid(up) * up"),
    "codes cut off": Spoilt(
        "swiglu_quant_rows", "swiglu_quant", "(y * (1.0 / scale) + 12582912.0) - 12582912.0", "y * (1.0 / scale)"
    ),
    "padding that is a slot": Spoilt(
        "moe_align_slots", "moe_align", "tl.zeros((FILL,), tl.int32) + num_slots", "tl.zeros((FILL,), tl.int32)"
    ),
}  # fmt: skip


def spoilt(folder: Path, fault: Spoilt) -> str:
    """Write our kernels with a fault below a folder, and a provider file of them: its path."""
    shutil.copytree(KERNELS, folder / "npu", ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
    source = folder / "npu" / f"{fault.file}.py"
    text = source.read_text()
    assert fault.right in text
    source.write_text(text.replace(fault.right, fault.wrong))
    file = folder / "wrong.py"
    stem = "qk_norm_rope" if fault.op == "qk_sum_squares" else fault.op
    file.write_text(FILE.format(folder=str(folder / "npu"), stem=stem, op=fault.op))
    return str(file)
