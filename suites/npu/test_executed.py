"""Level N3a: the IR that Huawei's compiler makes of every NPU kernel computes what the reference does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minimax_m2.harness.npu.executed import CompilerRefused, in_own_process, running
from minimax_m2.harness.npu.launches import Launch
from minimax_m2.harness.npu.reach import built
from minimax_m2.harness.npu.toolchain import compiler, reason_to_skip

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = reason_to_skip("N3a")
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")]

CASES = 30
REFUSED = Path(__file__).with_name("refused_kernels.py")


@pytest.mark.parametrize("op", [pytest.param(name, id=f"N3a-{name}") for name in built()])
def test_the_lowered_kernel_is_right_at_m2s_widths(op: str) -> None:
    found = in_own_process(op, CASES)

    assert not found.failures, "\n".join(found.failures)
    assert found.judged == CASES
    busy = found.judged - found.idle
    assert busy
    assert found.launches >= busy, f"{found.launches} launches for {busy} cases of {op} with tokens"


def ran(kernel: str, rows: int, n: int) -> torch.Tensor:
    """What a kernel of two buffers leaves in the second, of 64 numbers; all but ``rows`` were -7."""
    x, y = torch.arange(64.0), torch.full((64,), -7.0)
    signature = (("x_ptr", "*fp32"), ("y_ptr", "*fp32"), ("rows", "i32"))
    launch = Launch(Named(kernel), signature, (("N", n),), (x, y, rows), (64 // n,))
    with compiler() as by:
        running(by, [])(launch)
    return y


class Named:
    """Stands for a Triton function that only its file defines."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.fn = self

    @property
    def __code__(self) -> Named:
        return self

    @property
    def co_filename(self) -> str:
        return str(REFUSED)


def test_a_mask_keeps_what_is_behind_it() -> None:
    y = ran("doubled", 40, 16)
    assert torch.equal(y[:40], 2 * torch.arange(40.0))
    assert torch.equal(y[40:], torch.full((24,), -7.0))


def test_a_dropped_mask_is_caught() -> None:
    assert not torch.equal(ran("store_without_mask", 40, 16)[40:], torch.full((24,), -7.0))


def test_a_kernel_that_does_not_lower_is_no_pass() -> None:
    launch = Launch(Named("doubled"), (("x_ptr", "*fp8e4nv"), ("y_ptr", "*fp32"), ("rows", "i32")), (("N", 16),),
                    (torch.zeros(64), torch.zeros(64), 1), (4,))  # fmt: skip
    with compiler() as by, pytest.raises(CompilerRefused, match="fp8"):
        running(by, [])(launch)


SPOILT = {
    "a load left out": (
        "b = tl.load(x + HALF + turn, mask=turns, other=0.0)",
        "b = tl.load(x + turn, mask=turns, other=0.0)",
    ),
    "rounded twice": (
        "tl.store(y + turn, (a * cos",
        "a = a.to(dtype).to(tl.float32)\n        tl.store(y + turn, (a * cos",
    ),
}


@pytest.mark.parametrize("change", SPOILT)
def test_a_wrong_kernel_is_caught(change: str, tmp_path: Path) -> None:
    folder = REFUSED.parents[2] / "kernels" / "npu"
    rows, launcher = ((folder / name).read_text() for name in ("qk_norm_rope_rows.py", "qk_norm_rope.py"))
    right, wrong = SPOILT[change]
    assert right in rows
    (tmp_path / "wrong_rows.py").write_text(rows.replace(right, wrong))
    spoilt = launcher.replace("minimax_m2.kernels.npu.qk_norm_rope_rows", "wrong_rows")
    # Registered once by our own kernel; a second registration is refused.
    spoilt = spoilt.replace('registered("qk_norm_rope", _launch)', "_launch")
    spoilt = spoilt.replace('registered("qk_sum_squares", _launch_sums)', "_launch_sums")
    found_by = f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\n"
    (tmp_path / "wrong.py").write_text(spoilt.replace("import torch\n", found_by + "import torch\n", 1))

    assert in_own_process("qk_norm_rope", CASES // 2, str(tmp_path / "wrong.py")).failures
