"""Denoising losses against closed forms."""

import numpy as np
import pytest
import torch

from thermodiff.learned.batches import LamProposal, lam_rows, time_rows
from thermodiff.learned.losses import denoising_loss, squared_residual
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.predict import tensor_row
from thermodiff.schedules import VP, StraightLine

VARIANCE = np.array([0.25, 2.0])


def test_zero_control_leaves_drift_and_noise() -> None:
    """With e = 0 the residual is sigma grad log p_eq + z, here -(sigma / scale**2) x + z."""
    noise = VP(scale=0.5)
    g = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(6, 2, generator=g, dtype=torch.float64) for _ in range(2))
    row = tensor_row(noise.at(np.linspace(-4, 4, 6)), x0)
    squares = squared_residual(lambda x, t: torch.zeros_like(x), x0, z, row, noise)
    x = row.alpha * x0 + row.sigma * z
    expected = torch.as_tensor(z - row.sigma * x / 0.25).square().sum(1)
    torch.testing.assert_close(squares, expected)
    weights = torch.arange(6.0, dtype=torch.float64)
    loss = denoising_loss(lambda x, t: torch.zeros_like(x), x0, z, row, noise, "entropy", weights)
    torch.testing.assert_close(loss, (weights * squares).mean())


def gaussian_residual(lam: np.ndarray, noise: VP | StraightLine) -> np.ndarray:
    """E|b + z|**2 for the exact score of N(0, VARIANCE)."""
    signal = np.square(noise.at(lam).alpha)[:, None] * VARIANCE
    return (signal / (signal + np.square(noise.at(lam).sigma)[:, None])).sum(1)


@pytest.mark.parametrize("noise", [VP(), StraightLine(scale=0.1)], ids=lambda noise: noise.name)
def test_importance_sampling_gives_the_integral_over_lam(noise: VP | StraightLine) -> None:
    net = ControlMLP(2, width=4, rng=0)
    net.precondition(np.zeros(2), np.diag(VARIANCE), noise)
    low, high = noise.window()
    proposal = LamProposal(noise, low, high, VARIANCE)
    n, rng = 100_000, np.random.default_rng(0)
    row, weights = lam_rows(noise, proposal, True, (np.arange(n) + rng.random(n)) / n)
    x0 = torch.from_numpy(rng.standard_normal((n, 2)) * np.sqrt(VARIANCE)).float()
    z = torch.from_numpy(rng.standard_normal((n, 2))).float()
    with torch.no_grad():
        terms = torch.from_numpy(weights) * squared_residual(net, x0, z, tensor_row(row, x0), noise)
    x, w = np.polynomial.legendre.leggauss(200)
    nodes = 0.5 * (low + high) + 0.5 * (high - low) * x
    exact = 0.25 * (high - low) * float(w @ gaussian_residual(nodes, noise))
    error = float(terms.std()) / np.sqrt(n)
    assert abs(float(terms.mean()) - exact) < 4.0 * error


def test_weightings_in_t_and_in_lam_agree() -> None:
    """The same function of time integrated by both samplers, for both weightings."""
    noise = VP()
    low, high = noise.window(times=(1e-5, 1.0 - 1e-5))
    u = (np.arange(400_000) + 0.5) / 400_000
    proposal = LamProposal(noise, low, high, VARIANCE)
    for likelihood in (True, False):
        by_lam, lam_weights = lam_rows(noise, proposal, likelihood, u)
        by_time, time_weights = time_rows(noise, likelihood, u)
        first = np.mean(lam_weights * by_lam.sigma**2 * by_lam.alpha)
        second = np.mean(time_weights * by_time.sigma**2 * by_time.alpha)
        assert first == pytest.approx(second, rel=1e-4)


def test_proposal_is_a_density() -> None:
    proposal = LamProposal(VP(), -8.0, 20.0, VARIANCE)
    lam, density = proposal((np.arange(10_000) + 0.5) / 10_000)
    assert np.mean(1.0 / density) == pytest.approx(28.0, rel=1e-4)
    assert lam.min() >= -8.0
    assert lam.max() <= 20.0
    assert density.min() >= 0.15 / 28.0 - 1e-12
