"""What attention chooses by on a GPU, and what it makes of lengths, pages and queries that no host looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; the levels G0 and G1 are not here")

from minimax_m2.kernels.gpu.attention import in_groups_of_warps, plan

FITTING: dict[str, Any] = {
    "capability": 90, "dtype": torch.bfloat16, "cache": torch.bfloat16, "head_dim": 128, "rows": 512,
    "strides": (16384, 1024, 128), "alike": True, "aligned": True, "scaled": False, "scale": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"capability": 80}, {"capability": 100}, {"dtype": torch.float32}, {"cache": torch.float8_e4m3fn},
        {"head_dim": 96}, {"rows": 255}, {"strides": (16384, 1032, 128)}, {"alike": False}, {"aligned": False},
        {"scaled": True}, {"scale": -0.1},
    ],
    ids=str,
)  # fmt: skip
def test_the_kernel_of_sm_90_takes_what_it_can(change: dict[str, Any]) -> None:
    assert in_groups_of_warps(**FITTING)
    assert not in_groups_of_warps(**FITTING | change)


@pytest.mark.parametrize(
    ("sequences", "queries", "length", "splits"),
    [
        (1, 1, 4096, 32), (8, 1, 4096, 4), (1, 1, 100, 1), (1, 512, 512, 1), (0, 0, 0, 1),
        # Long ones are cut further: sequences of unlike lengths end together.
        (32, 1, 4096, 1), (32, 1, 8192, 2), (32, 1, 32768, 8), (32, 1, 131072, 8), (32, 512, 32768, 1),
    ],
)  # fmt: skip
def test_keys_are_split_until_the_multiprocessors_are_busy(
    sequences: int, queries: int, length: int, splits: int
) -> None:
    found = plan(
        sequences=sequences, queries=queries, length=length, heads=8, group=6, channels=128, bytes_=2, capability=90,
        multiprocessors=132,
    )  # fmt: skip
    assert found.splits == splits


def test_fewer_rows_and_keys_fit_less_memory() -> None:
    sizes = {"sequences": 1, "queries": 512, "length": 512, "heads": 8, "group": 6, "channels": 128, "bytes_": 2}
    keys = {arch: plan(**sizes, capability=arch, multiprocessors=132).keys for arch in (80, 90, 100, 120)}

    assert keys == {80: 32, 90: 128, 100: 128, 120: 64}


SPOILT = """
import torch
from minimax_m2.kernels.gpu.attention import attention

g = torch.Generator().manual_seed(0)
q, k, v = torch.randn(6, 2, 16, generator=g), *torch.randn(2, 8, 4, 1, 16, generator=g)
table = torch.arange(8, dtype=torch.int32).view(2, 4)
given = {"scale": 0.25, "max_query_len": 3, "max_seq_len": 16}


def rows_of_nan(table=table, lengths=(9, 13), starts=(0, 3, 6), **more):
    y = attention(q, k, v, table, torch.tensor(lengths), torch.tensor(starts), **given | more)
    return [t for t in range(6) if y[t].isnan().any()], [t for t in range(6) if not y[t].any()]


for bad in (-1, 8, 2**30):
    wrong = table.clone()
    wrong[1, 2] = bad
    assert rows_of_nan(wrong) == ([3, 4, 5], []), bad
    # Several programs a sequence, each of which takes a part of the keys.
    assert rows_of_nan(wrong, max_seq_len=100) == ([3, 4, 5], []), bad
assert rows_of_nan() == ([], [])
assert rows_of_nan(max_seq_len=100, starts=(1, 3, 5)) == ([], [0, 5])
assert rows_of_nan(lengths=(9, 17)) == ([3, 4, 5], [])
assert rows_of_nan(lengths=(-1, 13)) == ([0, 1, 2], [])
assert rows_of_nan(lengths=(9, 0)) == ([], [3, 4, 5])
assert rows_of_nan(starts=(0, 3, 9)) == ([3, 4, 5], [])
assert rows_of_nan(starts=(1, 3, 5)) == ([], [0, 5])
many, starts = torch.randn(30, 2, 16, generator=g), torch.tensor([0, 30])
y = attention(many, k, v, table[:1], torch.tensor([16]), starts, **given | {"max_query_len": 3})
assert y[8:].isnan().all() and not y[:8].isnan().any()
print("done")
"""


@pytest.mark.gpu
def test_what_only_the_data_knows_spoils_its_own_sequence(interpreted: Callable[[str], None]) -> None:
    interpreted(INDEXED + SPOILT)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a GPU of sm_90"
)
def test_the_kernel_of_sm_90_spoils_likewise() -> None:
    from minimax_m2.kernels.gpu.attention import attention

    q = torch.randn(256, 2, 64, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 32, 16, 1, 64, device="cuda", dtype=torch.bfloat16)
    table = torch.arange(32, dtype=torch.int32, device="cuda").view(2, 16)

    def found(lengths: tuple[int, int], starts: tuple[int, ...], page: int = 0, most: int = 128) -> list[str]:
        changed = table.clone()
        changed[1, 9] = page or changed[1, 9]
        tensors = (torch.tensor(x, device="cuda") for x in (lengths, starts))
        y = attention(q, k, v, changed, *tensors, scale=0.125, max_query_len=most, max_seq_len=256)
        kinds = [("nan" if row.isnan().all() else "0" if not row.any() else "y") for row in y]
        return [kinds[0], kinds[127], kinds[128], kinds[-1]]

    assert found((200, 256), (0, 128, 256)) == ["y", "y", "y", "y"]
    assert found((200, 256), (0, 128, 256), page=32) == ["y", "y", "nan", "nan"]
    assert found((200, 256), (0, 128, 256), page=-1) == ["y", "y", "nan", "nan"]
    assert found((257, 256), (0, 128, 256)) == ["nan", "nan", "y", "y"]
    assert found((200, 0), (0, 128, 256)) == ["y", "y", "0", "0"]
    assert found((200, 256), (1, 128, 255)) == ["0", "y", "y", "0"]
    assert found((200, 256), (0, 0, 256)) == ["y", "y", "nan", "nan"]


INDEXED = "from minimax_m2.harness import interpreter; interpreter.let_loops_end_at_scalars()\n"
