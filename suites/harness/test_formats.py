"""Spacings of every format, held to the format's own neighbours."""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.formats import FORMATS, half_ulp, name_of, representable


@pytest.mark.parametrize(
    "name, bits", [("bfloat16", torch.int16), ("float16", torch.int16), ("float8_e4m3fn", torch.uint8)]
)
def test_half_a_spacing_is_half_the_way_to_the_next_number(name: str, bits: torch.dtype) -> None:
    fmt = FORMATS[name]
    count = 2 ** (8 * fmt.dtype.itemsize - 1)
    # Positive bit patterns in order are the positive numbers in order.
    every = torch.arange(count).to(bits).view(fmt.dtype).to(torch.float64)
    finite = every[torch.isfinite(every)]
    assert torch.equal(half_ulp(finite[:-1], fmt), (finite[1:] - finite[:-1]) / 2)
    assert float(finite[-1]) == fmt.largest
    assert bool(representable(finite, fmt).all())
    assert not bool(representable(finite[:-1] + (finite[1:] - finite[:-1]) / 4, fmt).any())


def test_float32_and_int8_spacings() -> None:
    x = torch.tensor([1.0, 1.5, 2.0, -3.0, 2.0**-126, 0.0], dtype=torch.float64)
    up = torch.nextafter(x.abs().float(), torch.tensor(torch.inf)).double()
    assert torch.equal(half_ulp(x, FORMATS["float32"]), (up - x.abs()) / 2)
    assert torch.equal(half_ulp(x, FORMATS["int8"]), torch.full_like(x, 0.5))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_bear_the_names_of_their_dtypes(name: str) -> None:
    assert name_of(FORMATS[name].dtype) == name
