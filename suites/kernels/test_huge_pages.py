"""Packed weights keep their values whatever memory they lie in."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from minimax_m2.kernels.cpu.huge_pages import SMALLEST_BYTES, empty_in_huge_pages


@pytest.mark.parametrize("count", [0, 1, SMALLEST_BYTES - 1, SMALLEST_BYTES, SMALLEST_BYTES + mmap.PAGESIZE + 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_written_there_is_read_back(count: int, threads: int) -> None:
    x, before = (torch.arange(count) % 251).to(torch.uint8), torch.get_num_threads()
    torch.set_num_threads(threads)
    copy = empty_in_huge_pages(x.shape, x.dtype).copy_(x)
    torch.set_num_threads(before)
    assert torch.equal(copy, x)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no Linux with huge pages")
def test_huge_pages_are_asked_for() -> None:
    memory = empty_in_huge_pages((16 * SMALLEST_BYTES,), torch.uint8).fill_(1)
    assert "hg" in flags_of(memory.data_ptr() + memory.nbytes // 2)


def flags_of(address: int) -> list[str]:
    """What the kernel was told of the mapping that holds ``address``."""
    mapping = range(0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if "-" in name:
            start, end = name.split("-")
            mapping = range(int(start, 16), int(end, 16))
        if name == "VmFlags:" and address in mapping:
            return words
    return []
