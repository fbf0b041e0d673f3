"""bfloat16 in Triton's interpreter, which keeps it as raw 16-bit words.

It adds the words as integers, casts them to other types as integers, and rounds float32 to them by cutting off. Here
the casts from and to float32 are right, to nearest even, and whatever else would compute on the words is an error.
"""

from __future__ import annotations

from typing import Any

import numpy
from numpy.typing import NDArray

Words = NDArray[numpy.uint16]
NOT_A_NUMBER = numpy.uint16(0x7FC0)


def widened(words: Words) -> NDArray[numpy.float32]:
    """The float32 of each bfloat16 word."""
    return (words.astype(numpy.uint32) << numpy.uint32(16)).view(numpy.float32)


def narrowed(values: NDArray[numpy.float32]) -> Words:
    """The bfloat16 word nearest to each float32, of two the even one; NaN stays NaN."""
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    to_even = numpy.uint32(0x7FFF) + ((bits >> numpy.uint32(16)) & numpy.uint32(1))
    words = ((bits.astype(numpy.uint64) + to_even) >> numpy.uint64(16)).astype(numpy.uint16)
    return numpy.where(numpy.isnan(values), NOT_A_NUMBER, words)


def install() -> None:
    """Mend the interpreter of this process.

    Arithmetic on bfloat16, and a cast of it to anything but float32, raises TypeError from then on: on an NPU it may
    have meaning, here it has none.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, ReduceScanOpInterface, TensorHandle

    cast, convert = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        pair = src.dtype.scalar, dst_type.scalar
        if pair == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(src.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            return TensorHandle(narrowed(src.data), tl.bfloat16)
        if tl.bfloat16 in pair and pair[0] != pair[1]:
            raise TypeError(f"a cast from {pair[0]} to {pair[1]} would convert raw words; go by float32")
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding: Any) -> Any:
        is_bfloat16 = tl.bfloat16 in (src.dtype.scalar, dst_type.scalar)
        return cast_impl(self, src, dst_type) if is_bfloat16 else convert(self, src, dst_type, rounding)

    def refusing(compute: Any, what: str) -> Any:
        def refused(self: Any, *given: Any) -> Any:
            flat = [each for one in given for each in (one if isinstance(one, tuple) else (one,))]
            if any(getattr(getattr(each, "dtype", None), "scalar", None) == tl.bfloat16 for each in flat):
                raise TypeError(f"{what} would compute on raw words of bfloat16; widen with .to(tl.float32) first")
            return compute(self, *given)

        return refused

    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    for name in ("binary_op", "unary_op", "create_fma", "create_dot", "create_fabs", "create_rsqrt", "create_clampf"):
        setattr(InterpreterBuilder, name, refusing(getattr(InterpreterBuilder, name), name.removeprefix("create_")))
    ReduceScanOpInterface.apply = refusing(ReduceScanOpInterface.apply, "a reduction")
