"""Level G0: the source of every GPU kernel is right, in Triton's interpreter, without a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from minimax_m2.harness.interpreter import in_own_process, inexact
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.ours import function_of

pytest.importorskip("triton", reason="Triton is not installed; the levels G0 and G1 are not here")

BUILT = [name for name in all_ops() if function_of("gpu", name) is not None]
CASES = 12


@pytest.mark.gpu
@pytest.mark.parametrize("op", [pytest.param(name, id=f"G0-{name}") for name in BUILT])
def test_the_source_is_right_in_the_interpreter(op: str) -> None:
    found = in_own_process(op, CASES)

    assert not found.failures, "\n".join(found.failures)
    assert found.judged == CASES, f"{found.refused} cases were refused, {found.judged} judged"
    # The witness: outputs that no Triton function wrote would have been made by something else.
    busy = found.judged - found.idle
    assert busy
    assert found.launches >= busy, f"{found.launches} launches for {busy} cases of {op} with tokens"


def wrong_norm(file: Path, right: str, wrong: str) -> str:
    """Write our kernel of rms_norm with something wrong in it."""
    source = Path(kernel_file("rms_norm")).read_text()
    assert right in source
    # Registered once by our own kernel; a second registration is refused.
    file.write_text(source.replace(right, wrong).replace('registered("rms_norm", _launch)', "_launch"))
    return str(file)


@pytest.mark.gpu
def test_a_wrong_kernel_is_caught_in_the_interpreter(tmp_path: Path) -> None:
    file = wrong_norm(tmp_path / "eps_outside_the_root.py", "width) + eps))", "width)) + eps)")

    found = in_own_process("rms_norm", CASES, file)

    assert found.launches >= found.judged
    assert any("rms_norm" in failure for failure in found.failures), "eps added to the root passed"


@pytest.mark.gpu
def test_an_offset_of_32_bits_is_caught_in_the_interpreter(tmp_path: Path) -> None:
    file = wrong_norm(tmp_path / "row_in_32_bits.py", "program_id(0).to(tl.int64)", "program_id(0)")

    told = told_of("rms_norm", file)

    # What lies 2^31 elements before a tensor is another's, or nobody's.
    assert "rms_norm, rows past 2^31 elements: y at [" in told or "G0 rms_norm ended with -11" in told, told


def told_of(op: str, file: str) -> str:
    try:
        return "\n".join(in_own_process(op, 1, file).failures)
    except RuntimeError as ended:
        return str(ended)


def test_an_exact_call_with_another_result_is_told() -> None:
    doubled = SimpleNamespace(linear=lambda x, weight, out_dtype=None: 2 * right("linear")(x, weight))
    assert inexact(from_object(doubled, name="doubled"), "rms_norm") == []
    told = inexact(from_object(doubled, name="doubled"), "linear")
    assert [text.split(": y at")[0] for text in told] == [
        "linear, exact call in torch.float16", "linear, exact call in torch.float32"
    ]  # fmt: skip


def kernel_file(op: str) -> str:
    spec = find_spec(f"minimax_m2.kernels.gpu.{op}")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin
