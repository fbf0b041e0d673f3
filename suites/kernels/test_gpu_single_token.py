"""A decode of one sequence: programs that make the parts of a sum add them up themselves, in a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.devices import absence
from minimax_m2.kernels.gpu import experts_products, fp8_linear, scaled_product, toolkit
from minimax_m2.kernels.gpu.experts import experts, pack_experts
from minimax_m2.kernels.gpu.launch import capability
from minimax_m2.kernels.gpu.scaled_product import available, even_parts, joins

# Clusters of so many programs, one a multiprocessor, that an H200 whose groups have 16 and 18 of them holds at once.
CLUSTERS = {2: 66, 3: 43, 4: 32, 5: 24, 6: 20, 7: 18, 8: 16}


@pytest.mark.parametrize(
    ("tiles", "parts", "columns", "joined"),
    [(48, 4, 64, True), (48, 8, 64, True), (96, 4, 256, True), (48, 1, 64, False), (48, 9, 64, False),
     (160, 4, 256, False), (800, 2, 64, False)],
)  # fmt: skip
def test_parts_of_a_row_are_added_up_where_the_first_program_can_keep_them(
    tiles: int, parts: int, columns: int, joined: bool
) -> None:
    assert joins(tiles, parts, columns, lambda programs: CLUSTERS[programs]) == joined


def test_no_parts_are_joined_where_no_cluster_runs() -> None:
    assert not joins(48, 4, 64, lambda programs: 0)


@pytest.mark.parametrize(
    ("tiles", "groups", "parts"), [(96, 24, 4), (96, 12, 4), (48, 24, 2), (96, 6, 1), (132, 24, 1), (192, 24, 2)]
)
def test_parts_leave_the_busiest_program_the_fewest_steps(tiles: int, groups: int, parts: int) -> None:
    assert even_parts(tiles, groups, 256, 132, lambda programs: CLUSTERS[programs]) == parts


def _codes(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda") * 100).clamp(-448, 448).to(torch.float8_e4m3fn)


def _scales(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device="cuda") / 100 + 1e-3


def _token(hidden: int, dtype: torch.dtype) -> torch.Tensor:
    if not available(capability(torch.empty(0, device="cuda")), toolkit.compiler()):
        pytest.skip("the kernel of sm_90 is not here")
    return torch.randn(1, hidden, device="cuda").to(dtype)


def _refuse(*given: object) -> None:
    raise AssertionError("parts were added by a launch of their own")


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(8192, 3072), (3072, 6144), (4096, 3072), (3072, 3072), (2064, 3072)], ids=str)
def test_joined_parts_have_the_bits_of_parts_that_a_launch_adds(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, hidden = shape
    packed = fp8_linear.pack_fp8_linear(_codes(columns, hidden), _scales(-(-columns // 128), hidden // 128))
    x = _token(hidden, dtype)
    with monkeypatch.context() as apart:
        apart.setattr(scaled_product, "joins", lambda *_: False)
        expected = fp8_linear.fp8_linear(x, packed)

    monkeypatch.setattr(fp8_linear, "add_parts", _refuse)
    assert all(torch.equal(fp8_linear.fp8_linear(x, packed), expected) for _ in range(50))


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("width", [1536, 768])
@pytest.mark.parametrize(
    "ids", [[[0, 9, 3, 4, 15, 6, 7, 8]], [[0, 9, -1, 4, 15, 6, 99, 8], [1] * 8], [[-1] * 8]], ids=str
)
def test_experts_in_parts_are_those_in_one(ids: list[list[int]], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_experts(
        _codes(16, 2 * width, 3072), _codes(16, 3072, width), w13_scale=_scales(16, width // 64, 24),
        w2_scale=_scales(16, 24, width // 128),
    )  # fmt: skip
    x, weights = _token(3072, torch.bfloat16).repeat(len(ids), 1), torch.rand(len(ids), 8, device="cuda")
    chosen = torch.tensor(ids, dtype=torch.int32, device="cuda")
    found = [experts(x, packed, weights, chosen) for _ in range(50)]

    monkeypatch.setattr(experts_products, "parts_of", lambda *given: 1)
    whole = experts(x, packed, weights, chosen).float()
    assert all(torch.equal(y, found[0]) for y in found)
    # derived: sums in another order move a code in thousands of act by a sixteenth of itself
    assert float((found[0].float() - whole).norm()) <= 1e-3 * float(whole.norm())
    assert bool(whole.any()) == any(0 <= expert < 16 for row in ids for expert in row)


# From the first row of scales to the last are 8 GiB, of which nobody touches what lies between.
FAR = """
import torch
from minimax_m2.kernels.gpu.fp8_linear import fp8_linear, pack_fp8_linear

g = torch.Generator().manual_seed(0)
codes = (torch.randn(272, 3072, generator=g) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
near = torch.rand(3, 24, generator=g) / 100
far = torch.empty(2**31 + 24).as_strided(near.shape, (2**30, 1))
far.copy_(near)
x = torch.randn(1, 3072, generator=g)
found, expected = (fp8_linear(x, pack_fp8_linear(codes, scales)) for scales in (far, near))
assert torch.equal(found, expected)
print("done")
"""


@pytest.mark.gpu
def test_a_single_token_finds_scales_past_two_gigaelements(interpreted: Callable[[str], None]) -> None:
    interpreted(FAR)
