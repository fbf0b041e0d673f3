"""What a planned program may not do is seen at N3b: read what nobody wrote, two things in one place, a lost store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.npu import planned_run
from minimax_m2.harness.npu.device_program import for_this_cpu
from minimax_m2.harness.npu.launches import taken_over
from minimax_m2.harness.npu.our_kernels import provider, shapes_of
from minimax_m2.harness.npu.toolchain import Compiler, compiler, reason_to_skip
from minimax_m2.harness.verdict import Outcome, Verdict

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = reason_to_skip("N3b")
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")]


@pytest.fixture(scope="module")
def by() -> Iterator[Compiler]:
    with compiler() as one:
        yield one


def without(call: str, count: int = 1) -> Callable[[str], str]:
    """A program that leaves its first calls of a name out, all of them for 0."""
    return lambda program: re.sub(rf"^ *(func\.)?call @{call}.*\n", "", program, count=count, flags=re.MULTILINE)


def crowded(program: str) -> str:
    """A program whose buffers lie at half of their places, each upon its neighbour."""
    places = {name: int(value) for name, value in re.findall(r"(%[\w-]+) = arith\.constant (\d+) : i64", program)}
    fresh = (f"%crowded{number}" for number in count())

    def halved(found: re.Match[str]) -> str:
        name = next(fresh)
        # Vectors begin at multiples of 32 bytes.
        place = places[found[2]] // 64 * 32
        return f"{name} = arith.constant {place} : i64\n{found[1]} = hivm.hir.pointer_cast({name})"

    return re.sub(r"(%\w+) = hivm\.hir\.pointer_cast\((%[\w-]+)\)", halved, program)


def judged(op: str, by: Compiler, change: Callable[[str], str]) -> Verdict:
    with taken_over(planned_run.running(by, [], change)):
        return judge(shapes_of(op)[0], provider())


WRONG = (Outcome.WRONG, Outcome.NOT_A_NUMBER)
FAULTS: dict[str, tuple[Callable[[str], str], tuple[Outcome, ...]]] = {
    # What it would have filled is padding, or nothing at all.
    "a load left out": (without("load_gm_to_ubuf"), (*WRONG, Outcome.RAISED)),
    "buffers upon each other": (crowded, (*WRONG, Outcome.RAISED)),
    "a store left out": (without("store_ubuf_to_gm"), WRONG),
}


@pytest.mark.parametrize("op", ["rms_norm", "qk_norm_rope", "routing", "swiglu_quant"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_planned_program_is_seen(fault: str, op: str, by: Compiler) -> None:
    change, outcomes = FAULTS[fault]
    verdict = judged(op, by, change)
    assert verdict.outcome in outcomes, verdict.explain()


@pytest.mark.parametrize(
    "op, call, count, output",
    [("rms_norm", "broadcast_scalar", 0, "rms_norm_kernel: y_ptr"), ("qk_norm_rope", "load_gm_to_ubuf", 1, "q_ptr")],
    ids=["padding", "numbers"],
)
def test_what_nobody_wrote_is_said_by_what_hangs_on_it(
    op: str, call: str, count: int, output: str, by: Compiler
) -> None:
    verdict = judged(op, by, without(call, count))
    assert verdict.outcome is Outcome.RAISED
    assert f"{output} hangs on what the unified buffer held before" in verdict.evidence[0]


def test_an_instruction_that_is_not_known_is_no_pass(by: Compiler) -> None:
    verdict = judged("rms_norm", by, lambda program: program.replace("@vmul_1d_float", "@vunheard_1d_float"))
    assert verdict.outcome is Outcome.RAISED
    assert "no instruction here for vunheard_1d_float_4" in verdict.evidence[0]


@pytest.mark.parametrize(
    "line", ["hivm.hir.unheard", "%1 = memref.load %0[%c0] : memref<8xi1>", "%1 = hivm.hir.pointer_cast(%a, %b)"]
)
def test_a_line_that_is_not_known_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="not known here"):
        for_this_cpu(f"module attributes {{}} {{\n  func.func @kernel() attributes {{}} {{\n    {line}\n  }}\n}}")
