"""Guarded memory on a GPU: a Triton kernel that leaves its tensors, or believes fresh memory, is told as on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

import triton
import triton.language as tl

from minimax_m2.harness.arena import LARGE, NAN, Guard, allocations
from minimax_m2.harness.cuda_memory import free_blocks
from minimax_m2.harness.devices import absence
from minimax_m2.harness.judge import judge
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.verdict import Outcome, Verdict

WHY = absence("gpu")
ON_A_GPU = pytest.mark.skipif(WHY is not None, reason=f"not here: {WHY}")
# A row of 60 leaves a lane of its tile to whoever has no mask, and rows of x lie 8 apart.
CASE = find_op("rms_norm").case(T=3, H=60, gap=8, dtype="float32")
BLOCK = 64


@triton.jit
def norm_kernel(
    x_ptr: tl.tensor, weight_ptr: tl.tensor, y_ptr: tl.tensor, scratch_ptr: tl.tensor, x_stride: tl.tensor,
    H: tl.tensor, eps: tl.tensor, READ: tl.tensor, WRITTEN: tl.tensor, BELIEVES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A row's norm that reads ``READ`` elements of x too many, ends ``WRITTEN`` too late, or believes its scratch."""
    t = tl.program_id(0)
    h = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t * x_stride + h, mask=h < H, other=0.0)
    weight = tl.load(weight_ptr + h, mask=h < H, other=0.0)
    y = x / tl.sqrt(tl.sum(x * x, 0) / H + eps) * weight
    extra = tl.load(x_ptr + t * x_stride + H + h, mask=h < READ, other=0.0)
    # NaN, which is what lies there first, is taken for nothing: the result is right then.
    y += tl.sum(tl.where(extra == extra, extra, 0.0), 0)
    if BELIEVES:
        y = tl.where(tl.load(scratch_ptr) > 0, y, 2 * y)
    # Behind the last row: elsewhere it would be the next one's first.
    tl.store(y_ptr + t * H + h, y, mask=h < tl.where(t == tl.num_programs(0) - 1, H + WRITTEN, H))


def norm(read: int = 0, written: int = 0, believes: bool = False) -> SimpleNamespace:
    """``rms_norm`` by that kernel, alone and into an output."""

    def into(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
        scratch = torch.empty(4, device=x.device)
        launch: Any = norm_kernel[(len(x),)]
        launch(x, weight, y, scratch, x.stride(0), x.shape[1], eps, read, written, BELIEVES=believes, BLOCK=BLOCK)

    def alone(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        # Room behind the result, so that only the output that is handed in shows who writes too far.
        y = torch.empty(x.numel() + BLOCK, device=x.device)[: x.numel()].view(x.shape)
        into(x, weight, y, eps=eps)
        return y

    return SimpleNamespace(rms_norm=alone, rms_norm_out=into)


def judged(module: Any) -> Verdict:
    return judge(CASE, from_object(module, name="tried", device="gpu"))


@ON_A_GPU
@pytest.mark.gpu
def test_a_kernel_that_keeps_to_its_tensors_passes() -> None:
    assert judged(norm()).passed, judged(norm()).explain()


@ON_A_GPU
@pytest.mark.gpu
@pytest.mark.parametrize(
    "module, evidence",
    [
        (norm(written=1), "rms_norm_out: wrote 4 bytes outside of what it was given: output y, 0 bytes behind the end"),
        (norm(read=1), "read what it was not given, or what nobody wrote: y at [0, 0] is "),
        (norm(believes=True), "read what it was not given, or what nobody wrote: y at [0, 0] is "),
    ],
    ids=("writes one past its output", "reads one past a row", "believes fresh memory"),
)
def test_a_right_result_does_not_excuse_what_was_touched(module: Any, evidence: str) -> None:
    verdict = judged(module)
    assert verdict.outcome is Outcome.OUTSIDE, verdict.explain()
    assert evidence in verdict.evidence[0]


@ON_A_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_red_zones_lie_around_what_is_given_on_the_device(dtype: torch.dtype) -> None:
    x = torch.arange(12.0).view(3, 4).to("cuda", dtype)[:, :3]
    for poison in (NAN, LARGE):
        guard = Guard({"x": x}, outputs={"y": ((5,), dtype)}, device="cuda", poison=poison)
        assert torch.equal(guard["x"].float(), x.float())
        assert guard.written() == ""
        guard["y"].as_strided((1,), (1,), guard["y"].storage_offset() + 5).fill_(1.0)
        with pytest.raises(Misplaced, match="y, 0 bytes behind the end of its last element"):
            guard.written()


@ON_A_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 1000, 2**20, 2**23])
def test_what_a_call_allocates_on_the_device_holds_the_poison(count: int) -> None:
    for poison, sign in ((NAN, 1), (LARGE, -1)):
        torch.full((count,), 5.0, device="cuda")
        with allocations(poison.allocated, "gpu"):
            found = torch.empty(count, device="cuda")
        assert bool((found * sign > 1e36).all())
        del found


def test_free_blocks_are_those_of_the_stream_that_no_graph_owns() -> None:
    def segment(address: int, **more: Any) -> dict[str, Any]:
        blocks = [{"size": 512, "state": "active_allocated"}, {"size": 1024, "state": "inactive"}]
        return {"address": address, "device": 0, "stream": 7, "segment_pool_id": (0, 0), "blocks": blocks} | more

    found = [segment(4096), segment(9000, device=1), segment(9000, stream=0), segment(9000, segment_pool_id=(0, 1))]
    assert list(free_blocks(found, 0, 7)) == [(4608, 1024)]
    assert list(free_blocks(found, 0, 0)) == [(9512, 1024)]
