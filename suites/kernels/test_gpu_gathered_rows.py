"""Rows in the order of their slots: codes of them, and rows as they are, in the interpreter and compiled for sm_90."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.cubin import compiled, launches_of
from minimax_m2.kernels.gpu.gathered_rows import gathered_rows, gathered_tokens

DRAWN = """
import torch
from minimax_m2.kernels.gpu.gathered_rows import gathered_rows, gathered_tokens
from minimax_m2.reference.block_quant import block_quant

x, top_k = torch.arange(5 * 640).reshape(5, 640).sin(), 2
# Two experts' blocks of 16: five slots, three slots; 10 = padding.
slots = torch.full((48,), 10, dtype=torch.int32)
slots[:5], slots[16:19] = torch.tensor([0, 3, 4, 8, 9]), torch.tensor([1, 2, 7])
used = (slots < 10).nonzero().flatten()
tokens = slots[used].long() // top_k
"""
CODES = """
q, scale = block_quant(x, group=128)
for given, given_scale in ((x, None), (q, scale)):
    found, scales = gathered_rows(given, given_scale, slots, 10, top_k, 128)
    assert torch.equal(scales[used], scale[tokens]), given.dtype
    assert torch.equal(found[used].view(torch.uint8), q[tokens].view(torch.uint8)), given.dtype
"""
AS_THEY_ARE = """
for dtype in (torch.bfloat16, torch.float16):
    assert torch.equal(gathered_tokens(x.to(dtype), slots, 10, top_k)[used], x.to(dtype)[tokens]), dtype
"""


@pytest.mark.gpu
@pytest.mark.parametrize("asked", [CODES, AS_THEY_ARE], ids=["codes", "as they are"])
def test_tokens_are_gathered_in_the_order_of_their_slots(asked: str, interpreted: Callable[[str], None]) -> None:
    interpreted(f"{DRAWN}{asked}print('done')\n")


X, SLOTS = torch.zeros(8, 3072, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.int32)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "gather",
    [lambda: gathered_rows(X, None, SLOTS, 64, 8, 128),
     lambda: gathered_rows(X.to(torch.float8_e4m3fn), torch.zeros(8, 24), SLOTS, 64, 8, 128),
     lambda: gathered_tokens(X, SLOTS, 64, 8)],
    ids=["codes of floats", "codes", "as they are"],
)  # fmt: skip
def test_the_kernel_compiles_and_spills_nothing(gather: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", "90")

    (launch,) = launches_of(gather)

    assert compiled(launch, 90).spilled_bytes == 0
