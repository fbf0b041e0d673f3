"""The bits of a case: integers from numpy's Philox, turned into dyadic values without transcendental functions.

The same seed and name give the same numbers with every numpy, torch, instruction set and device, because only raw
64-bit words of a counter-based generator, integer sums and multiplications by powers of two are used.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from minimax_m2.harness.case import Case


class Bits:
    """Named streams of random integers and values that belong to one case."""

    def __init__(self, case: Case) -> None:
        self.seed = case.number("seed")

    def words(self, name: str, count: int) -> np.ndarray:
        """``count`` raw 64-bit words of the stream ``name``."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16], "little")
        return np.random.Philox(key=key).random_raw(count)

    def integers(self, name: str, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        """int64 in ``low..high`` (inclusive)."""
        if high < low:
            raise ValueError(f"integers({name!r}) drawn from the empty range {low}..{high}")
        count = int(np.prod(shape, dtype=np.int64))
        drawn = (self.words(name, count) >> np.uint64(16)) % np.uint64(high - low + 1)
        return torch.from_numpy(drawn.astype(np.int64)).reshape(shape) + low

    def bell(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """float64, bell-shaped: sums of four bytes on the grid of 2^-7, standard deviation 1.155, within +-3.99."""
        count = int(np.prod(shape, dtype=np.int64))
        words = self.words(name, -(-count // 2)).view(np.uint32)[:count]
        # Two sums of two bytes lie side by side in a word: an eighth of the time of a sum over an axis of four.
        pairs = (words & np.uint32(0x00FF00FF)) + (words >> np.uint32(8) & np.uint32(0x00FF00FF))
        sums = (pairs >> np.uint32(16)) + (pairs & np.uint32(0xFFFF))
        return torch.from_numpy((sums.astype(np.float64) - 510) / 128).reshape(shape)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """float64 in [0, 1), on the grid of 2^-24."""
        return self.integers(name, shape, 0, 2**24 - 1).double() / 2**24

    def shuffled(self, name: str, count: int) -> Tensor:
        """A permutation of ``count`` items, int64."""
        return torch.from_numpy(np.argsort(self.words(name, count), kind="stable").astype(np.int64))

    def subsets(self, name: str, rows: int, size: int, of: int) -> Tensor:
        """``rows`` unordered draws without repetition of ``size`` out of ``of``: int64 ``[rows, size]``."""
        keys = self.words(name, rows * of).reshape(rows, of)
        return torch.from_numpy(np.argsort(keys, axis=-1, kind="stable")[:, :size].astype(np.int64))


REGIMES = ("normal", "heavy", "tiny", "huge", "equal", "signed_zero")


def regime_values(bits: Bits, name: str, shape: tuple[int, ...], regime: str) -> Tensor:
    """float64 values of one regime; every one is exact in float16, and in bfloat16 where it has at most 8 digits.

    normal       bell of standard deviation near 1
    heavy        one value in 16 is 32 times larger
    tiny         scaled by 2^-10: statistics of the size of epsilon
    huge         scaled by 2^6
    equal        all values of a row are the same
    signed_zero  one value in four is +0 or -0
    """
    values = bits.bell(name, shape)
    if regime == "normal":
        return values
    if regime == "heavy":
        return torch.where(bits.integers(f"{name}/heavy", shape, 0, 15) == 0, values * 32, values)
    if regime == "tiny":
        return values * 2.0**-10
    if regime == "huge":
        return values * 2.0**6
    if regime == "equal":
        return values[..., :1].expand(shape).clone() if shape[-1] else values
    if regime == "signed_zero":
        kind = bits.integers(f"{name}/zero", shape, 0, 7)
        return torch.where(kind == 0, 0.0, torch.where(kind == 1, -0.0, values))
    raise ValueError(f"regime {regime!r} is unknown; use one of {', '.join(REGIMES)}")


def strided(x: Tensor, gap: int, poison: float = float("nan")) -> Tensor:
    """A copy of ``x`` whose rows lie ``gap`` elements apart, the gaps filled with poison."""
    if gap == 0:
        return x
    fill = poison if x.is_floating_point() else torch.iinfo(x.dtype).max
    store = torch.full((*x.shape[:-1], x.shape[-1] + gap), fill, dtype=x.dtype)
    view = store[..., : x.shape[-1]]
    view.copy_(x)
    return view
