"""The split operator without its norm, and with tables that are views: on the IR of Huawei's compiler, level N3a."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.npu.launches import taken_over
from minimax_m2.harness.npu.lowered_run import running
from minimax_m2.harness.npu.toolchain import compiler, reason_to_skip
from minimax_m2.reference.rope import rope

pytest.importorskip("triton", reason="Triton is not installed; the levels N0 to N3 are not here")
ABSENCE = reason_to_skip("N3a")
pytestmark = [pytest.mark.npu, pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")]

T, HEADS, KV_HEADS, D, R = 5, 3, 2, 32, 16


def sixteenths(*shape: int) -> Tensor:
    """Numbers whose products, and sums of two, float32 holds exactly."""
    return ((torch.arange(torch.Size(shape).numel()) * 37 + 11) % 61 - 30).reshape(shape) / 16


def test_without_the_norm_it_splits_and_rotates() -> None:
    from minimax_m2.kernels.npu.qk_norm_rope import split_qkv_tp_rmsnorm_rope

    # Rows of a wider tensor, and tables that are halves of one: as engines pass them.
    x, table = sixteenths(T, (HEADS + 2 * KV_HEADS) * D + 5)[:, 5:], sixteenths(T, R + 3)
    with compiler() as by, taken_over(running(by, [])):
        found = split_qkv_tp_rmsnorm_rope(
            x, table[:, : R // 2], table[:, R // 2 :], None, None, q_hidden_size=HEADS * D, kv_hidden_size=KV_HEADS * D,
            head_dim=D, rotary_dim=R, eps=1e-6, use_qk_norm=False,
        )  # fmt: skip

    q, k, v = (part.reshape(T, -1, D) for part in x.split([HEADS * D, KV_HEADS * D, KV_HEADS * D], 1))
    turned = rope(q.double(), k.double(), table[:, :R].double(), torch.arange(T), rotary_dim=R)
    expected = [y.flatten(1).float() for y in (*turned, v)]
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * 3
