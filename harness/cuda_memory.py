"""Memory that torch holds free on a GPU, filled with a byte: who believes what he allocates gets other numbers.

torch's allocator hands freed blocks out again as they are. Here every free block that a call on this stream could get
is filled, after two were made sure of, one for small and one for large requests. Memory that is taken from the driver
beyond those is as the driver gives it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

# torch serves requests of up to 1 MiB from segments of 2 MiB, larger ones from others.
SMALL, LARGE = 1 << 20, 64 << 20
"""Bytes that are free of each kind at least."""


def fill_free_memory(byte: int) -> None:
    """Fill what the current CUDA device's allocator may hand out on the current stream.

    Raises RuntimeError where the driver refuses.
    """
    held = [torch.empty(count, dtype=torch.uint8, device="cuda") for count in (SMALL, LARGE)]
    del held
    torch.cuda.synchronize()
    driver = ctypes.CDLL("libcuda.so.1")
    stream = torch.cuda.current_stream().cuda_stream
    for address, count in free_blocks(torch.cuda.memory_snapshot(), torch.cuda.current_device(), stream):
        status = driver.cuMemsetD8_v2(ctypes.c_uint64(address), ctypes.c_ubyte(byte), ctypes.c_size_t(count))
        if status != 0:
            raise RuntimeError(f"cuMemsetD8 of {count} free bytes at {address:#x} gave status {status}")
    torch.cuda.synchronize()


def free_blocks(segments: Iterable[Mapping[str, Any]], device: int, stream: int) -> Iterator[tuple[int, int]]:
    """Address and size of every free block of a device and stream in torch's own snapshot.

    Those of private pools are left alone: a captured graph may own them.
    """
    for segment in segments:
        address = segment["address"]
        for block in segment["blocks"]:
            mine = (segment["device"], segment["stream"]) == (device, stream)
            if mine and tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0) and block["state"] == "inactive":
                yield address, block["size"]
            address += block["size"]
