"""Closed forms and reference values, independent of thermodiff.  Entropies in nats, D = sigma_paper**2 / 2.

Gaussian data under a schedule with equilibrium N(0, k2): every principal axis contributes KL(p_0) - KL(p_t).  Values with
ten digits or more were computed with mpmath and cross-checked by independent integration of the rates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Mixture(NamedTuple):
    """A one-dimensional mixture with its entropy and second moment."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    entropy: float
    second_moment: float

    @property
    def columns(self) -> dict[str, object]:
        """Arguments of `thermodiff.GaussianMixture`."""
        return {"means": [[m] for m in self.means], "stds": list(self.stds), "weights": list(self.weights)}


BIM1 = Mixture((0.4, 0.6), (-1.5, 1.0), (0.3, 0.5), 1.19177873963, 1.686)
BIM2 = Mixture((0.3, 0.7), (-2.0, 1.0), (0.25, 0.4), 0.972504935636, 2.03075)

# Start N(1.5, 0.25): (mean, variance) of the one-dimensional reference Gaussian.
START = (1.5, 0.25)
# (schedule name, parameters, t_end) -> entropy production from t = 0.
GAUSSIAN_TOTALS = [
    ("VP", {}, 1.0, 1.44278817658),
    ("VP", {}, 0.99, 1.44272621738),
    ("VP", {"scale": 0.1}, 1.0, 122.854648533),
    ("VP", {"scale": 0.1}, 0.99, 122.848447698),
    ("StraightLine", {"scale": 0.1}, 1.0, 122.890562088),
    ("StraightLine", {"scale": 0.1}, 1.0 - 1e-5, 122.890562076),
    ("StraightLine", {"scale": 0.1}, 0.99, 122.87931065),
    ("VE", {}, 1.0, 4.60522016349),
]
# (schedule parameters of VP) -> rate per unit time at t = 0.2.
GAUSSIAN_RATES = [({}, 3.6405570294), ({"scale": 0.1}, 289.690952044)]
# D = 3, covariance with these principal variances, VP: S_tot(1).
GAUSSIAN3 = {"mean": (1.0, -0.5, 0.25), "variances": (2.0, 0.5, 0.1), "total": 1.60733308342, "kl": 1.6075425465}

BIMODAL_TOTALS = [
    (BIM1, "VP", {}, 1.0, 0.570159781595),
    (BIM1, "VP", {}, 0.99, 0.570159777104),
    (BIM1, "VP", {"scale": 0.1}, 1.0, 81.723883306),
    (BIM1, "StraightLine", {"scale": 0.1}, 1.0, 81.7245747006),
    (BIM1, "StraightLine", {"scale": 0.1}, 0.99, 81.7245052304),
    (BIM2, "VP", {}, 1.0, 0.961806975529),
    (BIM2, "VP", {"scale": 0.1}, 1.0, 99.1801914336),
    (BIM2, "StraightLine", {"scale": 0.1}, 1.0, 99.1813485046),
]

ALPHA_VP_END = 0.0178634241533
"""alpha of VP(0.1, 16) at t = 1: exp(-8.05 / 2)."""

# dim -> (entropy, E x^2, KL to N(0, 1), KL to N(0, 0.01)) of the published mixtures; printed to these digits.
PUBLISHED = {
    2: (3.00401, 4.623772, 1.14576, 225.4173),
    3: (4.34294, 5.368174, 1.09796, 259.9148),
    6: (8.40965, 11.617198, 2.91258, 564.1484),
    9: (12.15187, 20.920575, 6.57887, 1021.4241),
}


def gaussian_kl(mean: npt.ArrayLike, variance: npt.ArrayLike, k2: float) -> float:
    """KL(N(mean, diag(variance)) || N(0, k2)), summed over axes."""
    m, v = np.asarray(mean, dtype=float), np.asarray(variance, dtype=float)
    return float(np.sum(0.5 * (v / k2 - 1.0 - np.log(v / k2) + m * m / k2)))


def gaussian_arc_total(mean: npt.ArrayLike, variance: npt.ArrayLike, scale: float, lam: tuple[float, float]) -> float:
    """Entropy production in a log-SNR window, for any schedule with equilibrium N(0, scale**2)."""
    k2, ends = scale**2, []
    for edge in lam:
        alpha2 = 1.0 / (1.0 + np.exp(-edge) / k2)
        m = np.sqrt(alpha2) * np.asarray(mean, dtype=float)
        v = alpha2 * np.asarray(variance, dtype=float) + k2 * (1.0 - alpha2)
        ends.append(gaussian_kl(m, v, k2))
    return ends[1] - ends[0]


def gaussian_ve_total(variance: npt.ArrayLike, lam: tuple[float, float]) -> float:
    """h(p_T) - h(p_0) in a window where alpha = 1 and sigma**2 = exp(-lam) (de Bruijn)."""
    v = np.asarray(variance, dtype=float)
    return float(np.sum(0.5 * np.log((v + np.exp(-lam[0])) / (v + np.exp(-lam[1])))))


def gaussian_rate(mean: float, variance: float, alpha: float, sigma2: float, drift_rate: float, diffusivity: float) -> float:
    """Entropy production per unit time, E v^2 / D with v = f - D s, for one axis."""
    m, v = alpha * mean, alpha**2 * variance + sigma2
    # v(x) = drift_rate x + D (x - m) / v is linear: mean drift_rate m, slope drift_rate + D / v.
    return ((drift_rate * m) ** 2 + v * (drift_rate + diffusivity / v) ** 2) / diffusivity


def mixture_total(entropy: float, second_moment: float, dim: int, k2: float) -> float:
    """KL(p_0 || N(0, k2)) of a law with this entropy and second moment."""
    return -entropy + 0.5 * dim * np.log(2.0 * np.pi * k2) + 0.5 * second_moment / k2


def normal_logpdf(x: FloatArray, mean: FloatArray, cov: FloatArray) -> FloatArray:
    """log N(x; mean, cov) at points (n, d), by solving with the covariance itself."""
    gap = x - mean
    solved = np.linalg.solve(cov, gap.T).T
    sign, log_det = np.linalg.slogdet(2.0 * np.pi * cov)
    return -0.5 * (np.sum(gap * solved, axis=1) + log_det)


class MixtureOracle(NamedTuple):
    """log density, score, divergence and component rows of a mixture, in plain NumPy, from covariance matrices."""

    log_prob: FloatArray
    score: FloatArray
    divergence: FloatArray
    responsibilities: FloatArray
    squares: FloatArray
    """(n, K): y' C_k^-1 y - d."""


def mixture_oracle(
    x: FloatArray, weights: npt.ArrayLike, means: npt.ArrayLike, covs: npt.ArrayLike, alpha: float, sigma: float
) -> MixtureOracle:
    """The law of alpha x_0 + sigma z at points (n, d)."""
    weights, means, covs = (np.asarray(value, dtype=float) for value in (weights, means, covs))
    n, d = x.shape
    smoothed = alpha**2 * covs + sigma**2 * np.eye(d)
    logits = np.stack([normal_logpdf(x, alpha * m, c) for m, c in zip(means, smoothed, strict=True)], axis=1)
    logits = logits + np.log(weights)
    top = logits.max(axis=1, keepdims=True)
    share = np.exp(logits - top)
    log_prob = top[:, 0] + np.log(share.sum(axis=1))
    r = share / share.sum(axis=1, keepdims=True)
    gaps = x[:, None, :] - alpha * means
    g = -np.stack([np.linalg.solve(c, gaps[:, k].T).T for k, c in enumerate(smoothed)], axis=1)
    score = np.einsum("nk,nkd->nd", r, g)
    traces = np.array([np.trace(np.linalg.inv(c)) for c in smoothed])
    divergence = np.einsum("nk,nk->n", r, np.sum(g * g, axis=2) - traces) - np.sum(score**2, axis=1)
    return MixtureOracle(log_prob, score, divergence, r, -np.einsum("nkd,nkd->nk", gaps, g) - d)


def flow_position(x: FloatArray, mean: FloatArray, std: float, here: tuple[float, float], there: tuple[float, float]):
    """Where the probability flow of N(mean, std**2) carries x from (alpha, sigma) ``here`` to ``there``."""
    widths = [np.sqrt(alpha**2 * std**2 + sigma**2) for alpha, sigma in (here, there)]
    return there[0] * mean + widths[1] / widths[0] * (x - here[0] * mean)
