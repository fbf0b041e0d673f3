"""Which sums go by the peers' memory; all else goes on to the communicator behind."""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.symmetric import MOST_BYTES, Symmetric
from minimax_m2.reference.communicator import Communicator, Single, Threads

ROWS = MOST_BYTES // (2 * 3072)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 3072), torch.bfloat16, True),
        ((64, 2), torch.float32, True),
        ((ROWS, 3072), torch.bfloat16, True),
        ((ROWS + 1, 3072), torch.bfloat16, False),
        ((0, 3072), torch.bfloat16, False),
        ((1, 2), torch.float64, False),
        ((1, 2), torch.int64, False),
    ],
    ids=str,
)
def test_small_sums_of_what_gpus_add_go_by_peers_memory(
    shape: tuple[int, ...], dtype: torch.dtype, expected: bool
) -> None:
    x = torch.zeros(shape, dtype=dtype)
    assert Threads(2).run(lambda rank: Symmetric(rank).takes(x)) == [expected] * 2
    assert not Symmetric(Single()).takes(x)


def test_what_it_does_not_take_goes_on() -> None:
    def rank_main(rank: Communicator) -> tuple[float, int]:
        (line,) = Symmetric(rank).grid((2,))
        return float(line.all_reduce(torch.ones(1, dtype=torch.float64))), len(line.all_gather(torch.ones(3)))

    assert Threads(2).run(rank_main) == [(2.0, 6)] * 2
