"""Offsets past 2^31 elements on a GPU: rows and experts that lie gigabytes apart give what they give together."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import Mock

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

from minimax_m2.kernels.gpu import attention_rows, toolkit
from minimax_m2.kernels.gpu.attention import attention
from minimax_m2.kernels.gpu.fp8_linear import fp8_linear, pack_fp8_linear

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


@pytest.fixture
def by_clusters(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What launches clusters, and knows whether it was called; a GPU without them has none."""
    if torch.cuda.get_device_capability() != (9, 0) or toolkit.compiler() is None:
        pytest.skip("not here: clusters need a GPU of sm_90 and nvcc")
    launch = Mock(wraps=attention_rows.launch)
    monkeypatch.setattr(attention_rows, "launch", launch)
    return launch


@pytest.mark.gpu
def test_keys_past_two_gigaelements_are_found_by_clusters(by_clusters: Mock) -> None:
    op = find_op("attention")
    case = op.case(B=3, S=130, queries="one", Hk=2, group=6, D=128, page=8)
    assert far_call(op, case, ours("gpu"), multiple=attention_rows.CHUNK) == ""
    assert by_clusters.called


# The second page begins where a place in 16 bytes needs all of 32 bits.
@pytest.mark.gpu
def test_places_of_32_bits_are_found_by_clusters(by_clusters: Mock) -> None:
    apart = 2**31 * attention_rows.CHUNK + 64
    if torch.cuda.mem_get_info()[0] < 3 * apart:
        pytest.skip(f"not here: a cache of {2 * apart >> 30} GiB")
    g = torch.Generator(device="cuda").manual_seed(0)
    near = torch.randn(2, 16, 1, 128, device="cuda", dtype=torch.bfloat16, generator=g)
    far = torch.empty(apart + 16 * 128, device="cuda", dtype=near.dtype).as_strided(near.shape, (apart, 128, 128, 1))
    far.copy_(near)
    q = torch.randn(1, 6, 128, device="cuda", dtype=near.dtype, generator=g)
    table, lengths, starts = (torch.tensor(x, device="cuda") for x in ([[0, 1]], [32], [0, 1]))

    found, expected = (
        attention(q, keys, keys, table, lengths, starts, scale=0.1, max_query_len=1, max_seq_len=32)
        for keys in (far, near)
    )
    assert torch.equal(found, expected)
    assert by_clusters.call_count == 2


# 8 GiB from the first row of scales to the last.
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 100])
def test_scales_past_two_gigaelements_are_found(tokens: int) -> None:
    g = torch.Generator(device="cuda").manual_seed(0)
    codes = (torch.randn(272, 3072, device="cuda", generator=g) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    near = torch.rand(3, 24, device="cuda", generator=g) / 100
    far = torch.empty(2**31 + 24, device="cuda").as_strided(near.shape, (2**30, 1))
    far.copy_(near)
    x = torch.randn(tokens, 3072, device="cuda", dtype=torch.bfloat16, generator=g)

    found, expected = (fp8_linear(x, pack_fp8_linear(codes, scales)).float() for scales in (far, near))
    # derived: both are rounded to bfloat16, by 2^-9 of themselves at most
    assert float((found - expected).norm()) <= 2**-8 * float(expected.norm())


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
