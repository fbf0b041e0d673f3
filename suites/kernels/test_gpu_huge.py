"""Offsets past 2^31 elements on a GPU: rows and experts that lie gigabytes apart give what they give together."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.devices import absence
from minimax_m2.harness.huge import PAST, SPREAD, far_call, far_case, far_experts
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.sampling import sampled

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
# Two tensors of float32, or the weights of bfloat16 experts with the sums of a call.
ROOM = 20 * 2**30


def lack() -> str:
    """Why there is no room here, or nothing."""
    if (reason := absence("gpu")) is not None:
        return reason
    free, _ = torch.cuda.mem_get_info()
    return "" if free >= ROOM else f"{free >> 30} GiB of {ROOM >> 30} are free on the GPU"


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Others may want what a test took."""
    if reason := lack():
        pytest.skip(f"not here: {reason}")
    yield
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [pytest.param(name, id=f"G2-{name}") for name in SPREAD])
def test_rows_past_two_gigaelements_are_found(name: str) -> None:
    op, provider = find_op(name), ours("gpu")
    assert far_call(op, far_case(op, provider, sampled(op, 40)), provider) == ""


@pytest.mark.gpu
def test_keys_past_two_gigaelements_are_found_by_clusters() -> None:
    op = find_op("attention")
    case = op.case(B=3, S=130, queries="one", Hk=2, group=6, D=128, page=8)
    assert far_call(op, case, ours("gpu")) == ""


# A program a slot, and products over tiles of 64 slots that are sorted by expert, of which there are 4,098.
@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [{"T": 3, "H": 128, "I": 64}, {"T": 32, "H": 1024, "I": 512}], ids=["rows", "tiles"])
@pytest.mark.parametrize("quant", ["none", "weights"])
def test_packed_experts_past_two_gigaelements_are_found(quant: str, sizes: dict[str, int]) -> None:
    case = find_op("experts").case(E=3, K=2, quant=quant, **sizes)
    assert far_experts(case, ours("gpu")) == ""


@pytest.mark.gpu
def test_rows_that_an_int32_cannot_reach_are_missed() -> None:
    def near(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        reached = torch.arange(len(x), device=x.device) * x.stride(0) < PAST
        return right("rms_norm")(torch.where(reached[:, None], x, 0), weight, eps=eps)

    op, provider = find_op("rms_norm"), from_object(SimpleNamespace(rms_norm=near), name="near", device="gpu")
    assert "y at [" in far_call(op, op.case(T=5), provider)
