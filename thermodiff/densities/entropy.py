"""Entropy of a mixture after Gaussian smoothing.

For p = sum_k w_k p_k with responsibilities r_k(x) = w_k p_k(x) / p(x),

    h(p) = sum_k w_k h(p_k) + H(w) - E_p H(r(x)),

exactly.  The last term is bounded by ln K and varies little, so it is the only one that needs numerical work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff.accounting import Estimate

FloatArray = npt.NDArray[np.float64]

MOST_BY_CUBATURE = {1: 8, 2: 3}
"""Components up to which adaptive quadrature takes under a second or so, by dimension."""
THIN = 0.1
"""In d > 1, cubature steps over components that are thinner than this in the coordinates of another: 4e-3 nats were lost
between two needles with an error of 5e-11.  Sobol points see them."""
REPLICATES = 32
WORK = 4_000_000
"""Bound on points x components x dimensions of one replicate."""


class Part(NamedTuple):
    """Components of a law: covariance k is ``axes[k].T @ diag(variances[k]) @ axes[k]``; axes None means isotropic."""

    weights: FloatArray
    means: FloatArray
    variances: FloatArray
    """(K, d), or (K, 1) where all directions share one."""
    axes: FloatArray | None


Responsibility = Callable[[FloatArray, float, float], FloatArray]


def smoothed_entropy(part: Part, overlap: Responsibility, alpha: float, sigma: float, rng: Any) -> Estimate:
    """h(alpha x_0 + sigma z) in nats; ``overlap(x, alpha, sigma)`` gives H(r(x)) at points (n, d)."""
    dim = part.means.shape[1]
    variances = alpha**2 * part.variances + sigma**2
    log_volume = 0.5 * np.sum(np.log(np.broadcast_to(variances, part.means.shape)), axis=1)
    separate = float(part.weights @ log_volume) + 0.5 * dim * (1.0 + np.log(2.0 * np.pi))
    if part.weights.size == 1:
        return Estimate(separate, 0.0)
    separate -= float(part.weights @ np.log(part.weights))
    widths = np.sqrt(variances)
    if part.weights.size <= MOST_BY_CUBATURE.get(dim, 0) and (dim == 1 or _thinnest(part, widths) > THIN):
        shared = _by_cubature(part, overlap, alpha, sigma, widths)
    else:
        shared = _by_quasi_monte_carlo(part, overlap, alpha, sigma, widths, rng)
    return Estimate(separate - shared.value, shared.error)


def _thinnest(part: Part, widths: FloatArray) -> float:
    """Smallest width of any component, where another one is a standard normal."""
    count, dim = part.means.shape
    axes = np.broadcast_to(np.eye(dim), (count, dim, dim)) if part.axes is None else part.axes
    widths = np.broadcast_to(widths, (count, dim))
    # Root of the covariance of j in the principal axes of k, over the widths of k: singular values are widths.
    seen = np.einsum("kac,jbc->kjab", axes, axes) * widths[None, :, None, :] / widths[:, None, :, None]
    return float(np.linalg.svd(seen, compute_uv=False).min())


def _place(part: Part, k: Any, alpha: float, widths: FloatArray, unit: FloatArray) -> FloatArray:
    """Points of component(s) k at standard normal coordinates ``unit`` (n, d)."""
    offset = widths[k] * unit
    if part.axes is not None:
        axes = part.axes[k]
        offset = np.einsum("nj,njc->nc", offset, axes) if axes.ndim == 3 else offset @ axes
    return alpha * part.means[k] + offset


def _by_cubature(part: Part, overlap: Responsibility, alpha: float, sigma: float, widths: FloatArray) -> Estimate:
    """E H(r) component by component, adaptively, in coordinates where the component is a standard normal."""
    from scipy.integrate import cubature

    dim = part.means.shape[1]
    value = error = 0.0
    for k, weight in enumerate(part.weights):

        def integrand(unit: FloatArray, k: int = k) -> FloatArray:
            bell = np.exp(-0.5 * np.sum(unit * unit, axis=1)) / (2.0 * np.pi) ** (0.5 * dim)
            return bell * overlap(_place(part, k, alpha, widths, unit), alpha, sigma)

        # The other centres, and edges around the narrower of them, split the region: none is then stepped over.
        others = alpha * (np.delete(part.means, k, axis=0) - part.means[k])
        if part.axes is not None:
            others = others @ part.axes[k].T
        others, ratios = others / widths[k], np.delete(widths, k, axis=0).max(axis=1, keepdims=True) / widths[k].min()
        narrow = ratios[:, 0] < 0.5
        edges = [others[narrow] + step * ratios[narrow] for step in (-8.0, -1.0, 1.0, 8.0)]
        inside = [point for point in np.concatenate([others, *edges]) if np.all(np.abs(point) < 9.0)]
        edge, tolerance = np.full(dim, 9.0), dict[str, Any](rtol=0.0, atol=1e-10)
        result = cubature(integrand, -edge, edge, points=inside, max_subdivisions=2000, **tolerance)
        value += weight * float(result.estimate)
        error += weight * float(result.error)
    return Estimate(value, error)


def _by_quasi_monte_carlo(
    part: Part, overlap: Responsibility, alpha: float, sigma: float, widths: FloatArray, rng: Any
) -> Estimate:
    """E H(r) by independently scrambled Sobol points, whose spread gives the error."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    count, dim = part.means.shape
    size = 2 ** int(np.clip(np.log2(WORK / (count * dim)), 6, 12))
    edges = np.cumsum(part.weights)
    means = np.empty(REPLICATES)
    for replicate, stream in enumerate(np.random.default_rng(rng).spawn(REPLICATES)):
        unit = np.asarray(qmc.Sobol(dim + 1, scramble=True, rng=stream).random(size))
        k = np.minimum(np.searchsorted(edges, unit[:, 0], side="right"), count - 1)
        normal = ndtri(np.clip(unit[:, 1:], 1e-16, 1.0 - 1e-16))
        means[replicate] = np.mean(overlap(_place(part, k, alpha, widths, normal), alpha, sigma))
    return Estimate(float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(REPLICATES)))
