"""The bits of a case are the same everywhere: checksums, an independent Philox, and torch's integers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case
from minimax_m2.harness.op import find_op

MASK = 2**64 - 1


def bits(seed: int = 7) -> Bits:
    return Bits(Case({"op": "routing", "seed": seed}))


def checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def philox_words(seed: int, name: str, count: int) -> list[int]:
    """Philox 4x64 with ten rounds (Salmon et al., 2011) in Python's integers; numpy counts from 1."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    words: list[int] = []
    for block in range(1, -(-count // 4) + 1):
        a, b, c, d, k, m = block, 0, 0, 0, first, second
        for _ in range(10):
            x, y = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = (y >> 64) ^ b ^ k, y & MASK, (x >> 64) ^ d ^ m, x & MASK
            k, m = (k + 0x9E3779B97F4A7C15) & MASK, (m + 0xBB67AE8584CAA73B) & MASK
        words += [a, b, c, d]
    return words[:count]


@pytest.mark.parametrize("seed, name, count", [(0, "x", 1), (7, "logits", 4), (2**32 - 1, "w13", 23)])
def test_words_are_philox_by_its_definition(seed: int, name: str, count: int) -> None:
    assert bits(seed).words(name, count).tolist() == philox_words(seed, name, count)


def test_values_are_integer_sums_in_numpy_and_torch_alike() -> None:
    words = torch.tensor([w - 2**64 if w >= 2**63 else w for w in philox_words(7, "x", 12)])
    octets = torch.stack([words >> (8 * i) & 255 for i in range(8)], -1).view(-1, 4)
    assert torch.equal(bits().bell("x", (4, 6)), ((octets.sum(-1) - 510).double() / 128).view(4, 6))


STREAMS: dict[str, Callable[[Bits], Tensor]] = {
    "integers": lambda b: b.integers("i", (3, 5), -4, 9),
    "bell": lambda b: b.bell("x", (7, 9)),
    "uniform": lambda b: b.uniform("u", (11,)),
    "shuffled": lambda b: b.shuffled("s", 100),
    "subsets": lambda b: b.subsets("t", 6, 3, 20),
    **{regime: partial(regime_values, name="x", shape=(5, 16), regime=regime) for regime in REGIMES},
}
CHECKSUMS = {
    "integers": "8b1ecb873f8118a9",
    "bell": "a0dd8b736fc52463",
    "uniform": "f5ab0b46f51f2dce",
    "shuffled": "0705cfdc55ec0800",
    "subsets": "411f2a922ac39821",
    "normal": "555032877cfe4e8d",
    "heavy": "3537bcf779cc40b0",
    "tiny": "f929b1f55d6f0579",
    "huge": "da235e981d02d61b",
    "equal": "78f477836a808d91",
    "signed_zero": "63be78546db3e1b2",
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_has_its_checksum(stream: str) -> None:
    assert checksum(STREAMS[stream](bits())) == CHECKSUMS[stream]


def test_streams_differ_by_name_and_seed() -> None:
    assert not torch.equal(bits().bell("x", (64,)), bits().bell("y", (64,)))
    assert not torch.equal(bits(1).bell("x", (64,)), bits(2).bell("x", (64,)))


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert np.array_equal(bits().words("x", 100)[:10], bits().words("x", 10))


def test_the_bell_is_as_wide_as_it_says() -> None:
    values = bits().bell("x", (100_000,))
    assert float(values.abs().max()) < 4
    assert abs(float(values.std()) - 1.1547) < 0.01
    assert torch.equal(values * 128, (values * 128).round())


def test_subsets_and_shuffles_have_no_repetition() -> None:
    subsets = bits().subsets("t", 50, 8, 20)
    assert all(len(set(row)) == 8 for row in subsets.tolist())
    assert sorted(bits().shuffled("s", 30).tolist()) == list(range(30))


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_are_exact_in_float16(regime: str) -> None:
    values = regime_values(bits(), "x", (40, 64), regime)
    assert torch.equal(values.to(torch.float16).double(), values)


def test_signed_zeros_have_both_signs() -> None:
    values = regime_values(bits(), "x", (40, 64), "signed_zero")
    zeros = values[values == 0]
    assert {bool(sign) for sign in torch.signbit(zeros)} == {True, False}


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"empty range 3\.\.2"):
        bits().integers("i", (1,), 3, 2)
    with pytest.raises(ValueError, match="regime 'odd' is unknown"):
        regime_values(bits(), "x", (1, 1), "odd")


@pytest.mark.parametrize("dtype, poison", [(torch.bfloat16, None), (torch.int32, 2**31 - 1)])
def test_gaps_between_rows_are_poisoned(dtype: torch.dtype, poison: int | None) -> None:
    x = torch.arange(12).view(3, 4).to(dtype)
    view = strided(x, 8)
    whole = torch.as_strided(view, (3, 12), (12, 1))
    assert torch.equal(view, x)
    assert view.stride() == (12, 1)
    gap = whole[:, 4:]
    assert bool((gap.isnan() if poison is None else gap == poison).all())
    assert strided(x, 0) is x


@pytest.mark.parametrize("name", ["routing", "linear"])
def test_inputs_of_a_case_are_built_alike_twice(name: str) -> None:
    op = find_op(name)
    case = op.case(T=3, seed=11)
    first, second = (op.inputs(case, Bits(case)) for _ in range(2))
    tensors = [name for name, value in first.items() if isinstance(value, Tensor)]
    assert tensors
    assert all(checksum(first[name]) == checksum(second[name]) for name in tensors)
