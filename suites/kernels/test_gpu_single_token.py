"""A decode of one sequence: programs that make the parts of a sum add them up themselves, in a cluster."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.devices import absence
from minimax_m2.kernels.gpu import experts_products, fp8_linear, toolkit
from minimax_m2.kernels.gpu.experts import experts, pack_experts
from minimax_m2.kernels.gpu.experts_products import gate_parts
from minimax_m2.kernels.gpu.launch import capability
from minimax_m2.kernels.gpu.scaled_product import available, joins


@pytest.mark.parametrize(
    ("rows", "parts", "tiles", "joined"),
    [(1, 4, 192, True), (1, 8, 264, True), (1, 1, 128, False), (1, 9, 144, False), (2, 4, 192, False),
     (1, 4, 268, False)],
)  # fmt: skip
def test_parts_of_one_row_are_added_up_where_all_programs_run_at_once(
    rows: int, parts: int, tiles: int, joined: bool
) -> None:
    assert joins(rows, parts, tiles, places=264) == joined


@pytest.mark.parametrize(
    ("rows", "tiles", "groups", "parts"),
    [(1, 96, 24, 1), (1, 66, 24, 2), (1, 67, 24, 1), (1, 48, 24, 2), (1, 48, 3, 1), (16, 48, 24, 1)],
)
def test_gate_and_up_are_cut_where_half_the_gpu_would_idle(rows: int, tiles: int, groups: int, parts: int) -> None:
    assert gate_parts(rows, tiles, groups, places=132) == parts


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
@pytest.mark.parametrize("shape", [(3072, 6144), (4096, 3072), (3072, 3072), (2064, 3072)], ids=str)
def test_joined_parts_have_the_bits_of_parts_that_a_launch_adds(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, hidden = shape
    packed = fp8_linear.pack_fp8_linear(_codes(columns, hidden), _scales(-(-columns // 128), hidden // 128))
    x = _token(hidden, dtype)
    expected = fp8_linear.fp8_linear(x.repeat(2, 1), packed)[:1]

    monkeypatch.setattr(fp8_linear, "add_parts", _refuse)
    assert all(torch.equal(fp8_linear.fp8_linear(x, packed), expected) for _ in range(50))


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("ids", [[0, 9, 3, 4, 15, 6, 7, 8], [0, 9, -1, 4, 15, 6, 99, 8], [-1] * 8], ids=str)
def test_gate_and_up_in_two_parts_are_those_in_one(ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_experts(
        _codes(16, 1536, 3072), _codes(16, 3072, 768), w13_scale=_scales(16, 12, 24), w2_scale=_scales(16, 24, 6)
    )
    x, weights = _token(3072, torch.bfloat16), torch.rand(1, 8, device="cuda")
    chosen = torch.tensor([ids], dtype=torch.int32, device="cuda")
    found = [experts(x, packed, weights, chosen) for _ in range(50)]

    monkeypatch.setattr(experts_products, "gate_parts", lambda *given: 1)
    whole = experts(x, packed, weights, chosen).float()
    assert all(torch.equal(y, found[0]) for y in found)
    # derived: sums in another order move a code in thousands of act by a sixteenth of itself
    assert float((found[0].float() - whole).norm()) <= 1e-3 * float(whole.norm())
    assert bool(whole.any()) == any(0 <= expert < 16 for expert in ids)
