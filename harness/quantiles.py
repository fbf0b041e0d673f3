"""Critical values of the verdict's tests, from the false-alarm rate they may spend."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def two_sided_normal(alpha: float) -> float:
    """``tau`` with ``P(|z| > tau) = alpha`` for a standard normal ``z``."""
    return -NormalDist().inv_cdf(alpha / 2)


def chi_square_mean(dof: Tensor, alpha: float) -> Tensor:
    """``q`` with ``P(X / dof > q) = alpha`` for ``X`` chi-square of ``dof`` degrees of freedom, elementwise.

    Degrees of freedom are rounded down to 1 part in 1,000 first, so that a quantile serves many rows. The regularised
    upper incomplete gamma function is inverted by bisection on ``log q``; 40 halvings of [1, 1e6] leave 1e-11.
    """
    few, where = torch.exp(torch.floor(dof.log() * 1000) / 1000).unique(return_inverse=True)
    return _chi_square_mean(few, alpha)[where]


def _chi_square_mean(dof: Tensor, alpha: float) -> Tensor:
    low, high = torch.zeros_like(dof), torch.full_like(dof, math.log(1e6))
    half = dof / 2
    for _ in range(40):
        middle = (low + high) / 2
        above = torch.special.gammaincc(half, half * middle.exp()) > alpha
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high.exp()


def bernstein(sigma: Tensor, jump: Tensor | None, tau: float, alpha: float) -> Tensor:
    """Tail bound of a sum with a Gaussian part and rare steps of at most ``jump``.

    ``P(|S| > t) <= 2 exp(-t^2 / (2 (sigma^2 + jump t / 3)))`` solved for ``t``; without steps it is ``tau * sigma``.
    """
    if jump is None:
        return tau * sigma
    reach = jump * math.log(2 / alpha) / 3
    return reach + (reach.square() + (tau * sigma).square()).sqrt()


@lru_cache(maxsize=64)
def student(dof: int, alpha: float) -> float:
    """``t`` with ``P(T > t) = alpha`` for Student's T of ``dof`` degrees of freedom, by bisection.

    The tail from t is ``int_0^(atan(sqrt(dof) / t)) sin(u)^(dof - 1) du`` over that integral from 0 to pi/2, halved.
    """

    def tail(t: float) -> float:
        def area(end: float) -> float:
            u = torch.linspace(0, end, 4001, dtype=torch.float64)
            return float(torch.trapezoid(u.sin() ** (dof - 1), u))

        return area(math.atan(math.sqrt(dof) / t)) / area(math.pi / 2) / 2

    low, high = 1e-6, 1.0
    while tail(high) > alpha:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > alpha else (low, middle)
    return high
