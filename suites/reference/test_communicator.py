"""Simulated ranks sum, gather, scatter and exchange as torch.distributed does, and a missing rank is named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.reference.communicator import Communicator, Single, Threads

SIZES = [1, 2, 3, 8]


def share(rank: int, *, rows: int) -> Tensor:
    """Return what ``rank`` brings: small integers, so that every sum is exact."""
    return torch.arange(rows * 2).reshape(rows, 2).double() + 100 * rank


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_gives_every_rank_the_same_sum(size: int) -> None:
    results = Threads(size).run(lambda group: group.all_reduce(share(group.rank, rows=3)))
    expected = torch.stack([share(rank, rows=3) for rank in range(size)]).sum(0)
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("size", SIZES)
def test_all_gather_keeps_the_order_of_ranks(size: int) -> None:
    results = Threads(size).run(lambda group: group.all_gather(share(group.rank, rows=2)))
    expected = torch.cat([share(rank, rows=2) for rank in range(size)])
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("size", SIZES)
def test_gathered_scatters_are_the_reduction(size: int) -> None:
    def rank_main(group: Communicator) -> tuple[Tensor, Tensor]:
        x = share(group.rank, rows=2 * size)
        return group.all_gather(group.reduce_scatter(x)), group.all_reduce(x)

    assert all(torch.equal(gathered, reduced) for gathered, reduced in Threads(size).run(rank_main))


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_transposes_parts_of_any_length(size: int) -> None:
    def rank_main(group: Communicator) -> list[Tensor]:
        return group.all_to_all([share(group.rank, rows=group.rank + to) for to in range(size)])

    results = Threads(size).run(rank_main)
    expected = [[share(sender, rows=sender + to) for sender in range(size)] for to in range(size)]
    assert [[x.tolist() for x in row] for row in results] == [[x.tolist() for x in row] for row in expected]


def test_empty_batches_still_meet() -> None:
    group = Threads(2)
    results = group.run(lambda rank: rank.all_reduce(torch.zeros(0, 4)))
    assert [result.shape for result in results] == [(0, 4)] * 2
    assert group.counts == [{"all_reduce": 1}] * 2


def test_a_rank_may_write_to_what_it_sent() -> None:
    def rank_main(group: Communicator) -> Tensor:
        x, total = torch.ones(1000), torch.zeros(1000)
        for _ in range(50):
            total = group.all_reduce(x)
            x.add_(1)
        return total

    assert all(torch.equal(result, torch.full((1000,), 200.0)) for result in Threads(4).run(rank_main))


def test_a_rank_that_stays_away_is_named() -> None:
    def rank_main(group: Communicator) -> None:
        if group.rank != 1:
            group.all_reduce(torch.zeros(1))

    with pytest.raises(TimeoutError, match=r"all_reduce number 0 waited 0\.05 s for rank 1; does it skip"):
        Threads(3, timeout_s=0.05).run(rank_main)


def test_a_failing_rank_ends_the_wait_of_the_others() -> None:
    def rank_main(group: Communicator) -> None:
        if group.rank == 2:
            raise KeyError("the cause")
        group.all_reduce(torch.zeros(1))

    with pytest.raises(KeyError, match="the cause"):
        Threads(3, timeout_s=600).run(rank_main)


DIFFERENT: dict[str, tuple[Any, type[Exception], str]] = {
    "kinds": (
        lambda group: (group.all_gather if group.rank else group.all_reduce)(torch.zeros(2)),
        RuntimeError,
        "collective number 0 differs between ranks: all_reduce, all_gather",
    ),
    "shapes": (
        lambda group: group.all_reduce(torch.zeros(1 + group.rank)),
        ValueError,
        r"all_reduce of tensors that differ: rank 0: \[1\] torch.float32, rank 1: \[2\] torch.float32",
    ),
    "ragged": (lambda group: group.reduce_scatter(torch.zeros(3)), ValueError, "reduce_scatter of 3 rows over 2 ranks"),
    "parts": (lambda group: group.all_to_all([torch.zeros(3)]), ValueError, "all_to_all of 1 parts over 2 ranks"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_ranks_that_disagree_are_told(case: str) -> None:
    rank_main, error, message = DIFFERENT[case]
    with pytest.raises(error, match=message):
        Threads(2).run(rank_main)


def test_a_rank_alone_keeps_its_tensors() -> None:
    x = share(0, rows=2)
    group = Single()
    assert (group.rank, group.size) == (0, 1)
    assert all(torch.equal(y, x) for y in (group.all_reduce(x), group.all_gather(x), group.reduce_scatter(x)))
    assert group.all_to_all([x])[0] is x


DISTRIBUTED = """
import sys, torch
from torch import distributed, multiprocessing
from minimax_m2.reference.communicator import Distributed, Threads

def collectives(group):
    x = torch.arange(8.0).reshape(4, 2) + 100 * group.rank
    parts = [x[: group.rank + to] for to in range(group.size)]
    lines = [line.all_gather(x) for line in group.grid((1, 2))]
    return [group.all_reduce(x), group.all_gather(x), group.reduce_scatter(x), *group.all_to_all(parts), *lines]

def main(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    expected = Threads(2).run(collectives)[rank]
    actual = collectives(Distributed())
    distributed.destroy_process_group()
    if [x.tolist() for x in actual] != [x.tolist() for x in expected]:
        raise SystemExit(f"rank {rank}: {actual} is not {expected}")

if __name__ == "__main__":
    multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
"""


def test_simulated_ranks_agree_with_torch_distributed(tmp_path: Any) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(DISTRIBUTED)
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_grid_meets_along_each_of_its_lines() -> None:
    def rank_main(group: Communicator) -> tuple[list[int], list[int]]:
        rows, columns = group.grid((2, 3))
        own = torch.tensor([group.rank])
        return rows.all_gather(own).tolist(), columns.all_gather(own).tolist()

    results = Threads(6).run(rank_main)
    assert results == [([r % 3, r % 3 + 3], [r // 3 * 3 + i for i in range(3)]) for r in range(6)]


def test_lines_of_a_grid_wait_for_nobody_outside() -> None:
    def rank_main(group: Communicator) -> float:
        line = group.grid((2, 2))[1]
        rounds = 3 if group.rank < 2 else 1
        return sum(float(line.all_reduce(torch.ones(1))) for _ in range(rounds))

    assert Threads(4, timeout_s=5).run(rank_main) == [6, 6, 2, 2]


@pytest.mark.parametrize("group", [Single(), None], ids=["alone", "threads"])
def test_a_grid_of_another_number_of_ranks_is_refused(group: Communicator | None) -> None:
    with pytest.raises(ValueError, match=r"shape=\(3, 1\) has 3 places"):
        Threads(2).run(lambda rank: (group or rank).grid((3, 1)))


def test_what_travels_is_named_where_ranks_disagree() -> None:
    def rank_main(group: Communicator) -> None:
        for name in ("first", "second") if group.rank else ("second", "first"):
            group.all_reduce(torch.zeros(1), label=name)

    with pytest.raises(RuntimeError, match="differs between ranks: all_reduce of second, all_reduce of first"):
        Threads(2).run(rank_main)
