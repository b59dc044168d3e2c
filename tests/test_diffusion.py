import numpy as np
import pytest
from scipy import integrate

import thermodiff as td
from thermodiff.diffusion import medium_integral, noise_kl

DATA = td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5], weights=[0.4, 0.6])


def test_score_and_velocity_are_those_of_the_marginal():
    system = td.Diffusion(DATA, td.VP())
    x, t, h = np.linspace(-3, 3, 13)[:, None], 0.3, 1e-5
    slope = (system.log_prob(x + h, t) - system.log_prob(x - h, t)) / (2 * h)
    assert np.abs(system.score(x, t)[:, 0] - slope).max() < 1e-8
    velocity = system.noise.drift_rate(t) * x - system.noise.diffusivity(t) * system.score(x, t)
    assert np.allclose(system.velocity(x, t), velocity, rtol=1e-14, atol=0)


def test_velocity_carries_the_density():
    # Continuity: d p / dt = - d (v p) / dx, by central differences.
    system, x, t, h = td.Diffusion(DATA, td.VP()), np.linspace(-2, 2, 9)[:, None], 0.2, 1e-4
    change = (np.exp(system.log_prob(x, t + h)) - np.exp(system.log_prob(x, t - h))) / (2 * h)

    def flux(y):
        return system.velocity(y, t)[:, 0] * np.exp(system.log_prob(y, t))

    assert np.abs(change + (flux(x + h) - flux(x - h)) / (2 * h)).max() < 1e-5


@pytest.mark.parametrize(
    ("noise", "window"),
    [(td.VP(), None), (td.StraightLine(scale=0.1), None), (td.VE(), (-7.0, 15.0)), (td.CondOT(), (-6.0, 8.0)),
     (td.SubVP(), (-6.0, 8.0)), (td.Cosine(2.0), (-6.0, 8.0))],
)  # fmt: skip
def test_oracle_is_the_integral_of_the_rate(noise, window):
    system = td.Diffusion(DATA, noise)
    low, high = noise.window(lam=window)

    def rate(lam):
        row = noise.at(np.array([lam]))
        alpha, sigma = float(row.alpha[0]), float(row.sigma[0])
        q = -2 * float(row.growth[0]) / sigma
        x = np.linspace(-1.0, 1.0, 4001)[:, None] * (12 * sigma + 6 * alpha)
        density = np.exp(DATA.log_prob(x, alpha=alpha, sigma=sigma))
        gap = q * x[:, 0] - sigma * DATA.score(x, alpha=alpha, sigma=sigma)[:, 0]
        return 0.5 * np.trapezoid(density * gap**2, x[:, 0])

    value = integrate.quad_vec(rate, low, high, epsrel=1e-8, limit=400)[0]
    oracle = td.oracle(system, lam=window)
    assert abs(oracle.value / value - 1) < 1e-6
    assert oracle.error < 1e-8


def test_medium_needs_second_moments_only():
    noise = td.VP()
    low, high = noise.window()
    k2, moment = 1.0, DATA.second_moment
    alpha = noise.at(np.array([low, high])).alpha
    # For VP the medium is the change of E|x|^2 / (2 k^2), plus d ln alpha.
    closed = 0.5 * (alpha[1] ** 2 - alpha[0] ** 2) * (moment / k2 - 1)
    assert abs(medium_integral(noise, (low, high), moment, 1) - closed) < 1e-12


def test_noise_kl_against_quadrature():
    noise = td.VP(scale=0.1)
    low = noise.window()[0]
    row = noise.at(np.array([low]))
    alpha, sigma = float(row.alpha[0]), float(row.sigma[0])

    def integrand(x):
        log_p = float(DATA.log_prob([[x]], alpha=alpha, sigma=sigma)[0])
        return np.exp(log_p) * (log_p + 0.5 * np.log(2 * np.pi * 0.01) + x * x / 0.02)

    value = integrate.quad(integrand, -1.5, 1.5, epsabs=1e-12, limit=200)[0]
    assert abs(noise_kl(DATA, noise, low).value - value) < 1e-9


@pytest.mark.parametrize("noise", [td.SubVP(), td.CondOT()])
def test_divergent_schedules_need_a_window(noise):
    with pytest.raises(ValueError, match="state the window"):
        td.account(td.Diffusion(DATA, noise), rng=0)


def test_point_clouds_need_a_window_and_meet_their_oracle():
    system = td.Diffusion(td.PointCloud(DATA.sample(30, rng=0)), td.VP())
    with pytest.raises(ValueError, match="state the window"):
        td.account(system, rng=0)
    ledger = td.account(system, lam=(-8.0, 10.0), samples=4000, rng=0)
    assert ledger.oracle is not None
    assert abs(ledger.oracle.z) < 4


def test_wrong_arguments_are_refused_with_a_sentence():
    with pytest.raises(TypeError, match="Samples have no score"):
        td.Diffusion(td.Samples([[0.0], [1.0]]), td.VP())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a density"):
        td.Diffusion([[0.0]], td.VP())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a schedule"):
        td.Diffusion(DATA, "VP")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs a Diffusion"):
        td.oracle(DATA)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hutchinson"):
        td.account(td.Diffusion(DATA, td.VP()), divergence="hutchinson", rng=0)
