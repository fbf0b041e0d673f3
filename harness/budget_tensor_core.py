"""What the sums of NVIDIA's tensor cores do to a product: they cut where float32 arithmetic rounds.

A step adds 16 products (32 of e4m3) to the accumulator and cuts the result towards zero, so every sum comes out too
small, by an amount that grows with it: an error that all outputs share, beside one of their own. Two kinds occur:

    "bfloat16"  mma and wgmma of bfloat16 and float16: the sum of each step is cut to 24 bits. Over K products the
                whole comes out K/16 * 2^-26 too small.
    "e4m3"      wgmma of e4m3: each product of a step and the accumulator are cut 13 bits below the largest of them;
                kernels add its sums in float32 every 128 products (DeepGEMM, Triton).

Of e4m3 the cut follows from the factors: a product loses up to u = 2^-13 max(|a|, |p|), a the sum before the step and p
its products. Half of that, by its sign, is what a step loses as a whole; the rest is each product's own, of variance
u^2 / 12. So a sum that is large, or was on its way, is cut coarsely.

The size of the first kind is what one H100 showed on normal factors (gain 2.8e-6 at K = 3072); an emulation of the rule
gives 3.3e-6. Factors of one sign would show up to 1.4 times the gain: it enters as a standard deviation, of which tests
allow several. The second kind's rule gives four of six elements that an H200 returned to their ninth digit, and the
others within 2.1e-5.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, Shared, new_source

KINDS = ("bfloat16", "e4m3")

# Products that one step adds to the accumulator, and of e4m3; those that are added up in float32.
STEP, CODES, GROUP = 16, 32, 128
# The last bit that is kept beside the largest of a step's products of e4m3, and the power of two below a number as a
# part of it: over a binade the mean square is 3 / (8 ln 2).
KEPT, BELOW = 2.0**-13, (3 / (8 * math.log(2))) ** 0.5


def cut_by_tensor_core(out: Budgeted, x: Tensor, y: Tensor, kind: str) -> Budgeted:
    """Add what a tensor core of this kind cuts from ``out = x @ y``."""
    if kind == "bfloat16":
        steps = -(-x.shape[-1] // STEP)
        lost, own = steps * 2.0**-26 * out.value, (steps * 2.0**-26 * 0.58) ** 2 * (x.square() @ y.square())
        worst = steps * 2.0**-23 * (x.abs() @ y.abs())
    else:
        lost, own, worst = _cut_of_codes(x, y, torch.zeros_like(out.value))
    too_small = Shared(new_source(), lost, torch.zeros_like(out.value, dtype=torch.int64))
    return replace(out, var=out.var + own, bound=out.bound + worst, shared=(*out.shared, too_small), allowed=None)


def _cut_of_codes(x: Tensor, y: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What products of e4m3 lose: as a whole, the variance of each one's own part, and at most."""
    lost, own, worst = nothing, nothing, nothing
    for group in range(0, x.shape[-1], GROUP):
        before = nothing
        for start in range(group, min(group + GROUP, x.shape[-1]), CODES):
            end = min(start + CODES, group + GROUP)
            left, right = x[..., start:end], y[..., start:end, :]
            # No product is larger than the largest factors'.
            unit = KEPT * torch.maximum(before.abs(), left.abs().amax(-1, True) * right.abs().amax(-2, True))
            lost = lost + BELOW * unit / 2 * (left.sign() @ right.sign())
            # The accumulator is cut with them.
            own = own + (BELOW * unit).square() * (CODES + 1) / 12
            worst = worst + (CODES + 1) * unit
            before = before + left @ right
    return lost, own, worst
