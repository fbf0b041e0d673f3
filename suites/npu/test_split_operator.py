"""SGLang's and vllm-ascend's operator: two halves around the sum, whatever is padded, replicated or empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; the level N0 is not here")

from minimax_m2.kernels.npu import qk_norm_rope

ENTRIES = str(Path(__file__).with_name("entries.py"))
SIZES: dict[str, Any] = {"q_hidden_size": 32, "kv_hidden_size": 16, "head_dim": 16, "rotary_dim": 8, "eps": 1e-6}


def over_ranks(ranks: int, widths: str) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               "-m", "minimax_m2.harness.ranks", f"{ENTRIES}:split", widths]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return int(ended.stdout)


@pytest.mark.npu
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_give_the_bits_of_one(ranks: int) -> None:
    assert over_ranks(ranks, "true") == 0


@pytest.mark.npu
@pytest.mark.parametrize("ranks", [3, 4])
def test_padding_and_replicas_in_the_divisor_are_caught(ranks: int) -> None:
    assert over_ranks(ranks, "local") > 0


def arguments(tokens: int) -> dict[str, Any]:
    return {"input": torch.zeros(tokens, 64), "cos": torch.ones(tokens, 4), "sin": torch.zeros(tokens, 4),
            "q_weight": torch.ones(32), "k_weight": torch.ones(16)}  # fmt: skip


@pytest.mark.npu
def test_a_rank_without_tokens_takes_part_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[torch.Size] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, group=None: summed.append(x.shape))
    q, k, v = qk_norm_rope.split_qkv_tp_rmsnorm_rope(**arguments(0), **SIZES, tp_world=2)
    assert summed == [torch.Size([0, 2])]
    assert [list(x.shape) for x in (q, k, v)] == [[0, 32], [0, 16], [0, 16]]


@pytest.mark.npu
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"q_hidden_size": 40}, "q_hidden_size=40 is no multiple of head_dim=16"),
        ({"q_weight": None}, "q_weight is None with use_qk_norm=True"),
        ({"use_qk_norm": False}, "q_weight is a tensor with use_qk_norm=False"),
        ({"cos": torch.ones(3, 3)}, r"cos has shape \[3, 3\], expected \[T, at least rotary_dim/2\]"),
        ({"rotary_dim": 18}, "rotary_dim=18 is outside 0..16"),
        ({"tp_world": 0}, "tp_world=0"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qk_norm_rope.split_qkv_tp_rmsnorm_rope(**{**arguments(3), **SIZES, **wrong})
