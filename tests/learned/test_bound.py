"""The lower bound of the log-density, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learned_models import LAW, Exact, Peaks, learned_ledger

from thermodiff._check import DivergenceError
from thermodiff.accounting.nodes import fine
from thermodiff.densities import Density, Gaussian
from thermodiff.diffusion import noise_kl
from thermodiff.learned.bound import _student, lower_bound
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VE, VP, Schedule, StraightLine

WINDOW = (-8.0, 10.0)


def model_of(law: Density, noise: Schedule, change: Any = None, **options: Any) -> LearnedDiffusion:
    return LearnedDiffusion(Exact(law, noise, change=change), law, noise, **options)


def closed_form(noise: Schedule, x: np.ndarray, variance: float, c: float, window: tuple[float, float]) -> np.ndarray:
    """The bound at x (n, d) for N(0, variance) and the exact control times c, by quadrature in lam."""
    lam, weights = fine(*window)
    row = noise.at(lam)
    q, exact = -2.0 * row.growth / row.sigma, row.sigma / (row.alpha**2 * variance + row.sigma**2)
    slope = q - c * (q + exact)
    n, d = x.shape
    square = np.sum(x**2, axis=1)
    cost = 0.5 * (np.outer(square, (slope * row.alpha) ** 2) + d * (1.0 + slope * row.sigma) ** 2) @ weights
    low, high = noise.at(window[0]), noise.at(window[1])
    width = noise.equilibrium_std or low.sigma
    prior = -0.5 * d * np.log(2 * np.pi * width**2) - 0.5 * (low.alpha**2 * square + d * low.sigma**2) / width**2
    return prior + d * np.log(high.alpha * low.sigma / high.sigma) - cost


@pytest.mark.parametrize("noise", [VP(), StraightLine(scale=0.5), VE()], ids=lambda noise: noise.name)
def test_gaussian_without_variance(noise: Schedule) -> None:
    """The control variate of a Gaussian with its exact score leaves nothing but rounding."""
    law = Gaussian([0.0, 0.0], std=0.5)
    x = law.sample(50, 0)
    found = lower_bound(model_of(law, noise), x, lam=WINDOW, strata=8, replicates=4, rng=0)
    expected = closed_form(noise, x, 0.25, 1.0, WINDOW)
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert found.errors.max() < 1e-4
    # For an exact model the bound at x falls short of ln p(x) by what the noise at the data end spreads.
    assert np.mean(found.values) == pytest.approx(np.mean(law.log_prob(x)), abs=0.05)


@pytest.mark.parametrize("c", [0.8, 1.2])
def test_errors_are_true(c: float) -> None:
    """RMS z over points and seeds, at a control that is wrong."""
    law = Gaussian([0.0, 0.0], std=0.5)
    x, z = law.sample(30, 1), []
    expected = closed_form(VP(), x, 0.25, c, WINDOW)
    for seed in range(8):
        found = lower_bound(model_of(law, VP(), lambda e: c * e), x, lam=WINDOW, strata=6, rng=seed)
        z.append((found.values - expected) / found.errors)
    assert 0.75 < np.sqrt(np.mean(np.square(z))) < 1.3
    assert abs(np.mean(z)) < 0.3


def z_of(model: LearnedDiffusion, x: np.ndarray, exact: np.ndarray, strata: int, replicates: int, seeds: int) -> Any:
    """Of points (seeds, n), and of their mean (seeds,)."""
    z, common = [], []
    for seed in range(seeds):
        found = lower_bound(model, x, lam=(-8.0, 6.0), strata=strata, replicates=replicates, rng=seed)
        z.append((found.values - exact) / found.errors)
        common.append(float(np.mean(found.values - exact)) / found.common)
    return np.array(z), np.array(common)


@pytest.mark.parametrize(("strata", "replicates"), [(8, 4), (4, 4)])
def test_errors_of_few_draws_are_true(strata: int, replicates: int) -> None:
    """A score that is 20 % off by turns: the mean over the points had rms z of 1.6 to 4, and a mean z of up to 1."""
    law, noise, window = Gaussian([0.0], std=0.7), VP(), (-8.0, 6.0)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = noise.at(float(noise.lam(float(t[0]))))
        return x * float((1.0 + 0.2 * np.sin(row.lam)) * row.sigma / (0.49 * row.alpha**2 + row.sigma**2))

    x = law.sample(10, 1)
    lam, weights = fine(*window)
    row = noise.at(lam)
    change, v = 1.0 + 0.2 * np.sin(lam), 0.49 * row.alpha**2 + row.sigma**2
    cost = weights @ (1.0 - change * row.sigma**2 / v) ** 2 + x[:, 0] ** 2 * (
        weights @ (change * row.sigma * row.alpha / v) ** 2
    )
    low, high = noise.at(window[0]), noise.at(window[1])
    prior = -0.5 * (np.log(2.0 * np.pi) + low.alpha**2 * x[:, 0] ** 2 + low.sigma**2) + np.log(
        high.alpha * low.sigma / high.sigma
    )
    model = LearnedDiffusion(net, law, noise, predicts="eps")
    z, common = z_of(model, x, prior - 0.5 * cost, strata, replicates, 40)
    for values in (z, common):
        assert 0.75 < np.sqrt(np.mean(values**2)) < 1.25
        assert abs(np.mean(values)) < 0.4


def test_errors_of_few_draws_of_a_mixture_are_true() -> None:
    """d = 2, with an error of the score that is constant in x; the noise is integrated by quadrature."""
    noise, x, nets = VP(), LAW.sample(10, 1), Peaks(VP())

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = noise.at(noise.lam(float(t[0])))
        return nets(x, t) + 0.3 / float(row.sigma + row.alpha)

    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    z = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    shares = np.outer(weights, weights).ravel() / (2.0 * np.pi)
    lam, steps = np.polynomial.legendre.leggauss(60)
    cost = np.zeros(10)
    for level, step in zip(7.0 * lam - 1.0, 7.0 * steps, strict=True):
        row = noise.at(level)
        points = (row.alpha * x[:, None] + row.sigma * z).reshape(-1, 2)
        b = row.sigma * (LAW.score(points, alpha=float(row.alpha), sigma=float(row.sigma)) + 0.3 / (row.sigma + row.alpha))
        cost += 0.5 * step * np.sum((b.reshape(10, -1, 2) + z) ** 2, axis=2) @ shares
    low, high = noise.at(-8.0), noise.at(6.0)
    prior = -np.log(2.0 * np.pi) - 0.5 * low.alpha**2 * np.sum(x**2, axis=1) - low.sigma**2
    exact = prior + 2.0 * np.log(high.alpha * low.sigma / high.sigma) - cost
    points, common = z_of(LearnedDiffusion(net, LAW, noise, predicts="score"), x, exact, 4, 4, 40)
    for values in (points, common):
        assert 0.75 < np.sqrt(np.mean(values**2)) < 1.25
        assert abs(np.mean(values)) < 0.4


def test_mean_over_the_data_of_a_mixture() -> None:
    """-h(p_hi) - KL(p_lo || prior), with errors of points and of draws; and control variates that are worth it."""
    x = LAW.sample(400, 2)
    found = lower_bound(model_of(LAW, VP()), x, lam=WINDOW, strata=8, rng=4)
    row = VP().at(WINDOW[1])
    entropy = LAW.entropy(alpha=float(row.alpha), sigma=float(row.sigma)).value
    expected = -entropy - noise_kl(LAW, VP(), WINDOW[0]).value + 2 * np.log(float(row.alpha))
    assert abs(found.mean.value - expected) < 4.0 * found.mean.error
    # Without importance, pairs and control the variance would be d / 2 per unit of lam: 18 over 128 draws twice.
    assert np.median(found.errors) < 0.5 * np.sqrt(18.0**2 / (2 * 8 * 16))


def test_a_bound_lies_below() -> None:
    """For a model that is wrong the mean bound is below the mean for the right one by its mismatch."""
    x = LAW.sample(200, 3)
    right, wrong = (lower_bound(model_of(LAW, VP(), lambda e, c=c: c * e), x, lam=WINDOW, strata=8, rng=4) for c in (1, 0.5))
    gap = np.mean(right.values - wrong.values)
    error = np.std(right.values - wrong.values) / np.sqrt(200)
    mismatch = learned_ledger(Exact(LAW, VP(), change=lambda e: 0.5 * e), VP(), WINDOW, samples=2048).total("mismatch")
    assert abs(gap - mismatch.value) < 4.0 * np.hypot(error, mismatch.error) + 4.0 * right.common


def test_images_of_many_coordinates() -> None:
    """Beyond 512 coordinates the control is that of each alone: still unbiased."""
    law = Gaussian(np.full(600, 0.5), std=0.2)
    flat = Exact(law, VP())
    model = LearnedDiffusion(flat, law.sample(200, 0), VP())
    x = law.sample(20, 1)
    found = lower_bound(model, x, lam=(-8.0, 6.0), strata=16, rng=0)
    row = VP().at(6.0)
    variance = 0.04 + float(row.sigma / row.alpha) ** 2
    prior = 600 * noise_kl(Gaussian([0.5], std=0.2), VP(), -8.0).value
    expected = -300 * np.log(2 * np.pi * np.e * variance) - prior
    assert abs(found.mean.value - expected) < 4.0 * found.mean.error
    assert found.mean.error < 10.0


@pytest.mark.filterwarnings("ignore:the output of function is finite at none")
def test_errors() -> None:
    with pytest.raises(ValueError, match="replicates must be at least 4"):
        lower_bound(model_of(LAW, VP()), LAW.sample(3, 0), replicates=2)
    model = LearnedDiffusion(Exact(LAW, VP(), "eps"), LAW, VP(), predicts="score")
    with pytest.raises(ValueError, match="Pass predicts='eps'"):
        lower_bound(model, LAW.sample(3, 0))
    model = LearnedDiffusion(lambda x, t: x * np.nan, LAW, VP())
    with pytest.raises(DivergenceError, match="the score is nan or infinite at 3 of 3 points at lam = "):
        lower_bound(model, LAW.sample(3, 0), strata=4, replicates=4)


def test_errors_where_one_stratum_has_most_of_the_variance() -> None:
    """Then its seven degrees of freedom are all there are: with the 56 of all strata the rms of z is 1.17."""
    scales = np.array([1.0, *[0.05] * 7])[:, None]
    costs = np.random.default_rng(0).standard_normal((8, 8, 100_000)) * scales
    z = costs.mean(axis=0).sum(axis=0) / _student(costs.var(axis=0, ddof=1), 8)
    squares = z**2
    assert abs(squares.mean() - 1.0) < 4.0 * squares.std() / np.sqrt(len(z))
    alike = np.random.default_rng(1).standard_normal((8, 8, 100_000))
    z = alike.mean(axis=0).sum(axis=0) / _student(alike.var(axis=0, ddof=1), 8)
    assert abs((z**2).mean() - 1.0) < 4.0 * (z**2).std() / np.sqrt(len(z))
    assert np.array_equal(_student(np.zeros((3, 2)), 4), [0.0, 0.0])
