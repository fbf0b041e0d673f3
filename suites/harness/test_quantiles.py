"""Critical values against mpmath at 30 digits."""

from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
import pytest
import torch

from minimax_m2.harness.quantiles import bernstein, chi_square_mean, student, two_sided_normal

ALPHAS = (1e-2, 1e-8 / 5, 1e-8 / 5e6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_normal_exceeds_tau_with_probability_alpha(alpha: float) -> None:
    tail = mpmath.erfc(two_sided_normal(alpha) / mpmath.sqrt(2))
    assert abs(tail / alpha - 1) < 1e-9


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dof", [0.5, 1.0, 2.5, 32.0, 1000.0, 1e6])
def test_a_chi_square_mean_exceeds_its_quantile_at_most_with_probability_alpha(dof: float, alpha: float) -> None:
    quantile = float(chi_square_mean(torch.tensor([dof], dtype=torch.float64), alpha)[0])
    tail = mpmath.gammainc(dof / 2, dof * quantile / 2, mpmath.inf, regularized=True)
    # Degrees of freedom are rounded down by a thousandth, never up: the rate is at most alpha and hardly below.
    assert 0.95 * alpha < tail < (1 + 1e-4) * alpha


def test_equal_degrees_of_freedom_have_equal_quantiles() -> None:
    found = chi_square_mean(torch.tensor([32.0, 100.0, 32.0], dtype=torch.float64), 1e-9)
    assert found[0] == found[2] > found[1] > 1


def test_without_steps_the_reach_is_gaussian() -> None:
    sigma = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert torch.equal(bernstein(sigma, None, 6.0, 1e-9), 6.0 * sigma)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("sigma", [0.25, 3.0])
@pytest.mark.parametrize("jump", [0.0, 0.5, 7.0])
def test_the_reach_solves_bernsteins_inequality(jump: float, sigma: float, alpha: float) -> None:
    tau = two_sided_normal(alpha)
    t = float(bernstein(torch.tensor(sigma).double(), torch.tensor(jump).double(), tau, alpha))
    # t^2 = 2 log(2 / alpha) (sigma^2 + jump t / 3), where the Gaussian part has its own, smaller, tau^2.
    # derived: a dozen float64 operations
    assert t**2 == pytest.approx((tau * sigma) ** 2 + 2 * mpmath.log(2 / alpha) * jump * t / 3, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 1e-2, 1e-8 / 5])
@pytest.mark.parametrize("dof", [1, 2, 5, 31, 200])
def test_students_t_exceeds_its_quantile_with_probability_alpha(dof: int, alpha: float) -> None:
    t = student(dof, alpha)
    tail = mpmath.betainc(dof / 2, 0.5, 0, dof / (dof + t**2), regularized=True) / 2
    # derived: 4,000 trapezoids under a bend measure the area from inside, 5.4e-5 too little at 200 degrees
    assert 1 - 1e-4 < tail / alpha < 1 + 1e-12


def test_the_reach_covers_one_step_and_a_sum_of_rare_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    probability, alpha, terms = 1e-3, 1e-3, 1000
    # Each term steps by +-1 with a small probability.
    flips = torch.rand(terms, 4000, generator=generator) < probability
    signs = torch.rand(terms, 4000, generator=generator).round() * 2 - 1
    total = (flips * signs).sum(0).double()
    sigma = torch.tensor((terms * probability) ** 0.5, dtype=torch.float64)
    reach = float(bernstein(sigma, torch.tensor(1.0, dtype=torch.float64), two_sided_normal(alpha), alpha))
    assert float((total.abs() > reach).double().mean()) <= alpha
    assert reach < 3 * two_sided_normal(alpha) * float(sigma)
