"""What is timed over ranks is held: right sums and rotations pass, wrong ones and those of another rank do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimax_m2.harness import fused_bench
from minimax_m2.harness.fused_ranks import drawn_rows, held_rows, held_sum
from minimax_m2.harness.peer_sums import peer_sums
from minimax_m2.harness.rotated_shares import drawn_heads
from minimax_m2.reference.communicator import Single
from minimax_m2.reference.qk_norm_rope_cache import qk_norm_rope_cache

ROWS = drawn_rows(2, tokens=3, width=256, dtype=torch.bfloat16, seed=1)
ONE, OTHER = (share.float() for share in ROWS.shares)


def test_a_sum_is_held_to_its_rounding() -> None:
    assert held_sum(ROWS, (ONE + OTHER).bfloat16()).passed
    assert not held_sum(ROWS, (ONE + 2 * OTHER).bfloat16()).passed
    assert not held_sum(ROWS, ONE.bfloat16()).passed


def normed(total: torch.Tensor, *, rounded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    exact = total + ROWS.residual.float()
    stream = exact.bfloat16()
    row = stream.float() if rounded else exact
    y = row * torch.rsqrt(row.square().mean(-1, keepdim=True) + 1e-6) * ROWS.weight.float()
    return y.bfloat16(), stream


def test_a_norm_of_a_rounded_sum_is_held_as_such() -> None:
    found = normed((ONE + OTHER).bfloat16().float(), rounded=True)
    assert all(each.passed for each in held_rows(ROWS, found, running="bfloat16", variance_of="rounded"))
    assert not all(each.passed for each in held_rows(ROWS, normed(ONE, rounded=True), running="bfloat16"))


def test_a_rotation_is_held_by_the_heads_of_its_rank() -> None:
    given = drawn_heads(Single(), 3, "cpu")
    wide = [x.float() for x in given.rest[:3]]
    query = qk_norm_rope_cache(given.qkv.float(), given.stats, *wide, *given.rest[3:], **given.sizes)
    assert all(each.passed for each in given.held({}, query.bfloat16()))
    assert not all(each.passed for each in given.held({}, query.roll(1, 1).bfloat16()))
    assert not all(each.passed for each in replace(given, stats=2 * given.stats).held({}, query.bfloat16()))


def test_the_model_s_dtype_has_caches_of_its_own() -> None:
    given = drawn_heads(Single(), 3, "cpu")
    own = given.in_model_dtype()
    assert [x.dtype for x in own.rest[:3]] == [torch.bfloat16] * 3
    assert own.rest[4].data_ptr() != given.rest[4].data_ptr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_engines_that_are_not_here_are_absent_with_a_reason() -> None:
    found = peer_sums(Single(), width=256)
    assert found.absent == dict.fromkeys(("vllm", "flashinfer"), "torch sees no CUDA device")
    assert (found.adders, found.statistics) == ({}, {})


def test_a_wrong_sum_has_no_time(tmp_path: Path) -> None:
    kind = {"kind": "fused sum", "what": "o_proj", "graph_us": 6.25}
    lines = [
        json.dumps({**kind, "by": by, "tokens": tokens, "wrong": wrong})
        for by, wrong in (("nccl", ""), ("other", "sum: off"))
        for tokens in fused_bench.TOKENS
    ]
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(lines) + "\n")
    rows = fused_bench.table(records).splitlines()[2:]
    assert rows == [
        "| o_proj | nccl | 6.2 | 6.2 | 6.2 | 6.2 |",
        "| o_proj | other | wrong | wrong | wrong | wrong |",
    ]
