"""Division by a known number as kernels do it: right wherever 31 bits reach, and refused beyond."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from hypothesis import given
from hypothesis import strategies as st

from minimax_m2.kernels.gpu.divisor import divisor

LARGEST = (1 << 31) - 1


@given(st.integers(1, 1 << 31), st.data())
def test_quotients_are_those_of_whole_numbers(number: int, data: st.DataObject) -> None:
    found = divisor(number)
    # A quotient changes at multiples.
    multiple = number * data.draw(st.integers(0, LARGEST // number))
    for x in {0, LARGEST, max(0, multiple - 1), multiple}:
        assert x * found.magic >> found.shift == x // number


def test_every_quotient_of_small_numbers_is_right() -> None:
    for number in range(1, 130):
        found = divisor(number)
        assert [x * found.magic >> found.shift for x in range(1000)] == [x // number for x in range(1000)]


@pytest.mark.parametrize("number", [0, -1, (1 << 31) + 1])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"number={number} must be 1..2147483648"):
        divisor(number)
