"""Levels N1 and N2: every NPU kernel lowers, and its device program fits a card; what must be refused is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.npu.our_kernels import built, shapes_of
from minimax_m2.harness.npu.planned import BUFFER_BYTES, LARGEST_GRID, LONGEST_NAME, MOST_BYTES, Plan, plan_of
from minimax_m2.harness.npu.reach import launches_on
from minimax_m2.harness.npu.toolchain import CARDS, Compiler, Request, compiler, reason_to_skip
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = reason_to_skip("N1")
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")]

SAMPLED = 4
# Loops over single numbers that a kernel is known to have, by its name; none unless it stands here.
SCALAR_LOOPS: dict[str, int] = {}


@pytest.fixture(scope="module")
def by() -> Iterator[Compiler]:
    with compiler() as one:
        yield one


@pytest.mark.parametrize("op", [pytest.param(name, id=f"N1-{name}") for name in built()])
def test_a_kernel_lowers_to_vector_instructions(op: str, by: Compiler) -> None:
    found = launches_on(op, [*shapes_of(op), *sampled(find_op(op), SAMPLED)])
    assert found, f"{op} launched no Triton kernel"
    for launch in found:
        answer = by.ask(launch.request("lower"))
        assert not answer.error, f"{launch.name}: {answer.error}"
        assert answer.found["mix_mode"] == "aiv"
        assert len(launch.name) <= LONGEST_NAME
        assert torch.Size(launch.grid).numel() <= LARGEST_GRID


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("op", [pytest.param(name, id=f"N2-{name}") for name in built()])
def test_a_kernel_of_m2s_widths_fits_the_card(op: str, card: str, by: Compiler) -> None:
    for launch in launches_on(op, shapes_of(op)):
        found = planned(by, launch.request("plan", card))
        assert found.buffer_bytes <= MOST_BYTES, f"{launch.name} takes {found.buffer_share:.0%} of the buffer"
        assert not found.is_single_buffered
        assert found.scalar_loops == SCALAR_LOOPS.get(launch.name, 0)
        assert found.vector_calls > 0


def planned(by: Compiler, request: Request) -> Plan:
    answer = by.ask(request)
    assert not answer.error, f"{request.kernel}: {answer.error}"
    return plan_of(answer)


def refused(kernel: str, kind: str, n: int, stage: str = "plan") -> Request:
    """A request for one of the kernels that are here to be refused."""
    signature: Any = (("x_ptr", kind), ("y_ptr", "*fp32" if kind != "*i64" else kind), ("rows", "i32"))
    file = Path(__file__).with_name("refused_kernels.py")
    return Request(stage=stage, file=str(file), kernel=kernel, signature=signature, constants=(("N", n),))


def test_a_block_beyond_the_buffer_is_refused_by_the_compiler(by: Compiler) -> None:
    assert planned(by, refused("doubled", "*fp32", 2048)).buffer_bytes <= MOST_BYTES
    told = by.ask(refused("doubled", "*fp32", 131072)).error
    assert "ub overflow" in told
    assert f"{BUFFER_BYTES * 8} bits available" in told


def test_a_block_that_fits_only_once_is_seen(by: Compiler) -> None:
    assert not planned(by, refused("walked", "*fp32", 16384)).is_single_buffered
    assert planned(by, refused("walked", "*fp32", 32768)).is_single_buffered


def test_eight_bit_floats_are_refused_at_lowering(by: Compiler) -> None:
    assert "fp8" in by.ask(refused("doubled", "*fp8e4nv", 1024, "lower")).error


def test_integers_of_64_bits_are_added_one_by_one(by: Compiler) -> None:
    assert planned(by, refused("added", "*i64", 1024)).scalar_loops == 1
    assert planned(by, refused("added", "*fp32", 1024)).scalar_loops == 0
