"""Closed forms, independent of the rest of thermodiff.  Entropies in nats, D = temperature, friction 1.

OU relaxation and its KL identity: Risken, "The Fokker-Planck Equation" (1989), ch. 5; traps: Seifert, Rep. Prog. Phys. 75,
126001 (2012); linear steady states: Lax, Rev. Mod. Phys. 32, 25 (1960).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.special import dawsn

FloatArray = npt.NDArray[np.float64]


def gaussian_kl(mean: npt.ArrayLike, variance: npt.ArrayLike, k2: float) -> float:
    """KL(N(mean, diag(variance)) || N(0, k2)), summed over axes; nats."""
    m, ratio = np.asarray(mean, dtype=float), np.asarray(variance, dtype=float) / k2
    return float(np.sum(0.5 * (ratio - 1.0 - np.log(ratio) + m * m / k2)))


def gaussian_relaxation(mean: npt.ArrayLike, variance: npt.ArrayLike, k2: float, alpha: float) -> float:
    """Entropy production of N(mean, diag(variance)) towards N(0, k2) until x_0 is multiplied by ``alpha``; nats.

    KL(p_0 || p_eq) - KL(p_T || p_eq): the equilibrium does not change, whatever the clock.
    """
    m, v = np.asarray(mean, dtype=float), np.asarray(variance, dtype=float)
    return gaussian_kl(m, v, k2) - gaussian_kl(alpha * m, alpha**2 * v + k2 * (1.0 - alpha**2), k2)


def mixture_relaxation(
    weights: Sequence[float], means: npt.ArrayLike, stds: Sequence[float], k2: float, alpha: float, step: float = 0.25
) -> float:
    """The same for an isotropic Gaussian mixture in d <= 3: KL(p || p_eq) = -h + E[-ln p_eq]; nats."""
    w, m, s = np.asarray(weights, float), np.asarray(means, float), np.asarray(stds, float)
    dim, result = m.shape[1], 0.0
    for sign, a in ((1.0, 1.0), (-1.0, alpha)):
        widths = np.sqrt(a**2 * s**2 + k2 * (1.0 - a**2))
        moment = float(w @ (a**2 * np.sum(m * m, axis=1) + dim * widths**2))
        cross = 0.5 * dim * np.log(2.0 * np.pi * k2) + 0.5 * moment / k2
        result += sign * (cross - mixture_entropy(w, a * m, widths, step))
    return result


def mixture_entropy(weights: FloatArray, means: FloatArray, stds: FloatArray, step: float = 0.25) -> float:
    """Differential entropy of an isotropic Gaussian mixture in d <= 3, by the trapezoid rule; nats.

    ``step`` is in units of the smallest width.  The integrand is analytic in a strip around the real axis and vanishes at
    both ends of the grid, where the rule converges geometrically: halving the step changes nothing above 1e-10.
    """
    h = step * float(stds.min())
    axes = [
        np.arange((means[:, j] - 9.0 * stds).min(), (means[:, j] + 9.0 * stds).max() + h, h) for j in range(means.shape[1])
    ]
    columns = [
        np.exp(-0.5 * ((axis[:, None] - means[:, j]) / stds) ** 2) / (np.sqrt(2.0 * np.pi) * stds)
        for j, axis in enumerate(axes)
    ]
    # The last axis alone, then one slab at a time for the others: (points of all axes but the first) x components.
    rest = np.ones((1, weights.size))
    for column in columns[1:]:
        rest = (rest[:, None, :] * column[None, :, :]).reshape(-1, weights.size)
    total = 0.0
    for row in columns[0]:
        p = np.einsum("nk,k->n", rest, weights * row)
        p = p[p > 0.0]
        total -= float(p @ np.log(p))
    return total * h ** len(axes)


def mixture_log_density(x: float, weights: Sequence[float], means: Sequence[float], stds: Sequence[float]) -> float:
    """ln p(x) of a mixture on the line; nats."""
    w, m, s = (np.asarray(value, float) for value in (weights, means, stds))
    return float(np.log(np.sum(w * np.exp(-0.5 * ((x - m) / s) ** 2) / (np.sqrt(2.0 * np.pi) * s))))


def dragged_entropy(k: float, diffusivity: float, u: float, t: float) -> float:
    """Mean entropy production until ``t`` in a harmonic trap dragged at speed u, from equilibrium; nats.

    The law moves rigidly with velocity u (1 - exp(-k t)); the entropy production is its square over D.
    """
    return u * u / diffusivity * (t + 2.0 * np.expm1(-k * t) / k - np.expm1(-2.0 * k * t) / (2.0 * k))


def dragged_mean(k: float, u: float, t: float) -> float:
    """Mean position in the dragged trap at time ``t``."""
    return u * t + u * np.expm1(-k * t) / k


def breathing_variance(t: float) -> float:
    """Variance at ``t`` of dx = -(1 + t) x dt + sqrt(2) dW from N(0, 1), by Dawson's integral."""
    y = 1.0 + t
    decay = np.exp(1.0 - y * y)
    return float(decay + 2.0 * (dawsn(y) - decay * dawsn(1.0)))


def breathing_work(t: float) -> float:
    """Mean work in the breathing trap, the integral of (dk/dt) v / 2; units of D."""
    return 0.5 * quad(breathing_variance, 0.0, t, epsabs=1e-13, epsrel=1e-13)[0]


def breathing_entropy(t: float) -> float:
    """Mean entropy production in the breathing trap: work - change of free energy - KL(p_t || equilibrium at t); nats."""
    k = 1.0 + t
    return breathing_work(t) - 0.5 * np.log(k) - gaussian_kl(0.0, breathing_variance(t), 1.0 / k)


def rotation_rate(k: float, g: float) -> float:
    """Steady entropy production per unit time of dx = (-k + g R) x dt + noise in the plane; nats per unit time."""
    return 2.0 * g * g / k


def rotation_variance(k: float, diffusivity: float, v0: float, t: float) -> float:
    """Variance of each coordinate at ``t`` from N(0, v0)."""
    return diffusivity / k + (v0 - diffusivity / k) * np.exp(-2.0 * k * t)


def rotation_relaxation(k: float, g: float, diffusivity: float, v0: float, t: float) -> float:
    """Entropy production until ``t`` from N(0, v0): excess (fall of the KL to the steady state) + housekeeping; nats."""
    steady = diffusivity / k
    variances = np.array([v0, rotation_variance(k, diffusivity, v0, t)])
    start, end = (gaussian_kl(np.zeros(2), np.full(2, v), steady) for v in variances)
    integral = steady * t - (v0 - steady) * np.expm1(-2.0 * k * t) / (2.0 * k)
    return start - end + 2.0 * g * g / diffusivity * integral


def gyrator_rate(k: float, c: float, t1: float, t2: float) -> float:
    """Steady entropy production of the two-temperature gyrator, K = [[k, c], [c, k]]; nats per unit time."""
    return c * c * (t1 - t2) ** 2 / (2.0 * k * t1 * t2)


def gyrator_heat(k: float, c: float, t1: float, t2: float) -> float:
    """Steady heat into bath 1; energy (k_B = 1) per unit time."""
    return c * c * (t2 - t1) / (2.0 * k)


def gyrator_covariance(k: float, c: float, t1: float, t2: float) -> FloatArray:
    """Stationary covariance C of the gyrator: A C + C A' + 2 diag(t1, t2) = 0 with A = -K."""
    from scipy.linalg import solve_continuous_lyapunov

    return solve_continuous_lyapunov(-np.array([[k, c], [c, k]]), -2.0 * np.diag([t1, t2]))


def double_well_moment(diffusivity: float) -> float:
    """E x^2 under the Boltzmann density exp(-(x^4/4 - x^2/2) / D)."""

    def boltzmann(x: float) -> float:
        return float(np.exp(-((x * x - 1.0) ** 2) / (4.0 * diffusivity)))

    above, below = (
        quad(lambda x, p=power: x**p * boltzmann(x), 0.0, 8.0, points=[1.0], epsabs=1e-14, epsrel=1e-13)[0]
        for power in (2, 0)
    )
    return above / below
