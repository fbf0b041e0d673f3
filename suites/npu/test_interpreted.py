"""Level N0: the source of every NPU kernel is right, in Triton's interpreter, bfloat16 included."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from minimax_m2.harness.interpreter import in_own_process
from minimax_m2.harness.npu.reach import built

pytest.importorskip("triton", reason="Triton is not installed; the level N0 is not here")

CASES = 24
# The interpreter takes milliseconds a choice, and a tile of codes.
FEWER = {"routing": 8, "block_dequant": 6}


@pytest.mark.npu
@pytest.mark.parametrize("op", [pytest.param(name, id=f"N0-{name}") for name in built()])
def test_the_source_is_right_in_the_interpreter(op: str) -> None:
    found = in_own_process(op, FEWER.get(op, CASES), device="npu")

    assert not found.failures, "\n".join(found.failures)
    assert found.judged == FEWER.get(op, CASES), f"{found.refused} cases were refused, {found.judged} judged"
    # The witness: outputs that no Triton function wrote would have been made by something else.
    busy = found.judged - found.idle
    assert busy
    assert found.launches >= busy, f"{found.launches} launches for {busy} cases of {op} with tokens"


# Each is one change of our kernel that deployments had: what it writes, and what stands in its place.
WRONG = {
    "the second half of a pair turned back": ("b * cos + a * sin", "b * cos - a * sin"),
    "the norm rounded before it is turned": (
        "tl.store(y + turn, (a * cos", "tl.store(y + turn, (a.to(tl.float16).to(tl.float32) * cos"
    ),
    "eps outside the root": ("tl.sqrt(squares / width + eps)", "(tl.sqrt(squares / width) + eps)"),
    "all rows read the first angle": ("row * cos_stride", "0 * cos_stride"),
}  # fmt: skip


@pytest.mark.npu
@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_kernel_is_caught(change: str, tmp_path: Path) -> None:
    rows, whole, launcher = (Path(kernel_file(f"qk_norm_rope{part}")).read_text() for part in ("_rows", "_whole", ""))
    right, wrong = WRONG[change]
    assert right in rows
    (tmp_path / "wrong_rows.py").write_text(rows.replace(right, wrong))
    of_rows = ("minimax_m2.kernels.npu.qk_norm_rope_rows", "wrong_rows")
    (tmp_path / "wrong_whole.py").write_text(whole.replace(*of_rows).replace(right, wrong))
    # Registered once by our own kernel; a second registration is refused.
    spoilt = launcher.replace(*of_rows).replace("minimax_m2.kernels.npu.qk_norm_rope_whole", "wrong_whole")
    spoilt = spoilt.replace('registered("qk_norm_rope", _launch)', "_launch")
    spoilt = spoilt.replace('registered("qk_sum_squares", _launch_sums)', "_launch_sums")
    file = tmp_path / "wrong.py"
    found_by = f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\n"
    file.write_text(spoilt.replace("import torch\n", found_by + "import torch\n", 1))

    found = in_own_process("qk_norm_rope", CASES // 2, str(file), device="npu")

    assert found.failures


def kernel_file(name: str) -> str:
    spec = find_spec(f"minimax_m2.kernels.npu.{name}")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin
