"""What the sums of NVIDIA's tensor cores do to a product: they cut where float32 arithmetic rounds.

A step adds 16 products (32 of e4m3) to the accumulator and cuts the result towards zero, so every sum comes out too
small, by an amount that grows with it: an error that all outputs share, beside one of their own. Two kinds occur:

    "bfloat16"  mma and wgmma of bfloat16 and float16: the sum of each step is cut to 24 bits. Over K products the
                whole comes out K/16 * 2^-26 too small.
    "e4m3"      wgmma of e4m3, whose products and accumulator are cut 13 bits below the largest of them; kernels add
                its sums in float32 every 128 products (DeepGEMM, Triton), where it is 2^-14.6 too small.

The sizes below are what one H100 showed on normal factors (gain 2.8e-6 at K = 3072; 4.0e-5 and a deviation of 2^-12.9
for e4m3); a bit-exact emulation of the two rules above gives 3.3e-6, 2.4e-5 and 2^-13.0. Factors of one sign would
show up to 1.4 times the gain: it enters as a standard deviation, of which tests allow several.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, Shared, new_source

KINDS = ("bfloat16", "e4m3")

# Products that one step adds to the accumulator.
STEP = 16


def cut_by_tensor_core(out: Budgeted, x: Tensor, y: Tensor, kind: str) -> Budgeted:
    """Add what a tensor core of this kind cuts from ``out = x @ y``."""
    terms = x.shape[-1]
    squares = x.square() @ y.square()
    if kind == "bfloat16":
        steps = -(-terms // STEP)
        gain, own = steps * 2.0**-26, steps * 2.0**-26 * 0.58
        worst = steps * 2.0**-23 * (x.abs() @ y.abs())
    else:
        gain, own = 2.0**-14.6, 2.0**-12.9
        worst = terms * 2.0**-12.9 * x.abs().amax(-1, keepdim=True) * y.abs().amax(-2, keepdim=True)
    too_small = Shared(new_source(), gain * out.value, torch.zeros_like(out.value, dtype=torch.int64))
    return replace(
        out, var=out.var + own**2 * squares, bound=out.bound + worst, shared=(*out.shared, too_small), allowed=None
    )
