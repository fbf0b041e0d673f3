"""Steps whose error is not the sum of their parts' errors, so the budget must see them whole.

A sum that divides its own terms shares their errors: treated operation by operation, the predicted error of a
renormalised weight is up to 2.7 times off, and wrong altogether for one term, where the quotient is exactly 1.
Each function here is plain torch; ``harness.budget`` holds a rule for it that is exact to first order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def renormalise(w: Tensor, *, eps: float = 0.0) -> Tensor:
    """Divide non-negative ``w [..., K]`` by its sum over K (plus ``eps``): ``w / (sum(w) + eps)``."""
    if has_torch_function_unary(w):
        return handle_torch_function(renormalise, (w,), w, eps=eps)
    return w / (w.sum(-1, keepdim=True) + eps)


def rms_normalise(x: Tensor, *, eps: float) -> Tensor:
    """Divide ``x [..., H]`` by its root mean square over H: ``x * rsqrt(mean(x^2) + eps)``."""
    if has_torch_function_unary(x):
        return handle_torch_function(rms_normalise, (x,), x, eps=eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def unnormalised_softmax(x: Tensor) -> Tensor:
    """Take ``exp(x - max(x))`` over the last dimension: 1 at the peak; rows that are all ``-inf`` become 0."""
    if has_torch_function_unary(x):
        return handle_torch_function(unnormalised_softmax, (x,), x)
    peak = x.amax(-1, keepdim=True)
    return torch.exp(x - peak.masked_fill(peak == -torch.inf, 0.0))


def softmax(x: Tensor) -> Tensor:
    """Normalise ``exp(x)`` over the last dimension; rows that are all ``-inf`` become 0, not NaN."""
    if has_torch_function_unary(x):
        return handle_torch_function(softmax, (x,), x)
    return torch.softmax(x, -1).masked_fill(x.amax(-1, keepdim=True) == -torch.inf, 0.0)
