"""Schemas of torch_npu's fused operators, as the wheels of two releases carry them, without importing either.

``python -m minimax_m2.harness.npu.torch_npu_schemas torch_npu-2.13.0-*.whl torch_npu-2.7.1-*.whl`` prints
``torch_npu_schemas.json``: of each wheel its name, its hash, and the text that its operators are generated from.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
SOURCE = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
# What engines call to run MiniMax-M2 on Ascend.
OPERATORS = (
    "npu_rms_norm", "npu_add_rms_norm", "npu_swiglu", "npu_rotary_mul", "npu_moe_gating_top_k",
    "npu_moe_init_routing_v2", "npu_grouped_matmul", "npu_moe_token_unpermute", "npu_moe_finalize_routing",
    "npu_fused_infer_attention_score", "npu_scatter_pa_kv_cache", "npu_dynamic_quant", "npu_dequant_swiglu_quant",
    "npu_grouped_matmul_swiglu_quant",
)  # fmt: skip


def releases() -> tuple[str, ...]:
    """Releases whose schemas are kept, the newest first."""
    return tuple(_kept())


def schemas(release: str) -> dict[str, str]:
    """The schema of each operator in a release. Raises ValueError for a release that is not kept."""
    if release not in _kept():
        raise ValueError(f"release {release!r} of torch_npu is not kept; use one of {', '.join(_kept())}")
    found: dict[str, str] = _kept()[release]["schemas"]
    return found


def read(wheel: Path) -> dict[str, Any]:
    """What is kept of a wheel. Raises ValueError where it lacks an operator."""
    with zipfile.ZipFile(wheel) as files:
        text = files.read(SOURCE).decode()
    found = {}
    for name in OPERATORS:
        match = re.search(rf"^\s*(?:- )?func: ({name}\(.*)$", text, re.MULTILINE)
        if match is None:
            raise ValueError(f"{wheel.name} has no {name} in {SOURCE}")
        found[name] = match[1].strip()
    return {
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "source": SOURCE,
        "schemas": found,
    }


@cache
def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def main(wheels: Sequence[str]) -> None:
    kept = {Path(wheel).name.split("-")[1]: read(Path(wheel)) for wheel in wheels}
    sys.stdout.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
