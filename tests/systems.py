"""Systems that several tests measure, and the exact values of their rows in a window."""

from __future__ import annotations

import numpy as np

import thermodiff as td
from thermodiff.schedules import Schedule

LINE = td.GaussianMixture([[-2.0], [1.0]], stds=[0.6, 0.8], weights=[0.3, 0.7])
PLANE = td.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], stds=[0.8, 0.9], weights=[0.4, 0.6])
TILTED = td.GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], covs=[[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]], weights=[0.35, 0.65]
)
CLOUD = td.PointCloud([[-1.2], [-0.4], [-0.1], [0.3], [0.9], [1.6]])


def correlated(dim: int, components: int, rng: int, centre: float = 0.0) -> td.GaussianMixture:
    """A mixture with full covariances, none of them near to singular."""
    generator = np.random.default_rng(rng)
    root = generator.normal(size=(components, dim, dim)) / np.sqrt(dim)
    covs = root @ root.transpose(0, 2, 1) + 0.05 * np.eye(dim)
    means = centre + 3.0 * generator.normal(size=(components, dim)) / np.sqrt(dim)
    return td.GaussianMixture(means, covs=covs, weights=generator.dirichlet(np.full(components, 5.0)))


def exact_rows(data: td.Density, noise: Schedule, window: tuple[float, float]) -> dict[str, float]:
    """System from the entropies at both ends, medium from second moments integrated in *time*; d <= 2."""
    from scipy.integrate import quad

    row = noise.at(np.array(window))
    low, high = (data.entropy(alpha=float(row.alpha[k]), sigma=float(row.sigma[k])).value for k in (0, 1))
    start, end = float(row.time[1]), float(row.time[0])

    def rate(t: float) -> float:
        f, diffusivity = float(noise.drift_rate(t)), float(noise.diffusivity(t))
        moment = float(noise.alpha(t)) ** 2 * data.second_moment + float(noise.sigma(t)) ** 2 * data.dim
        # E v.f / D with v = f x - D s and E x.s = -d.
        return f * f / diffusivity * moment + f * data.dim

    medium = quad(rate, start, end, epsabs=1e-11, epsrel=1e-11, limit=500)[0]
    return {"system": low - high, "medium": medium, "total": low - high + medium}
