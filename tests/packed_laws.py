"""Packed laws for the kernel tests, with what a plain NumPy oracle needs to know of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from thermodiff.kernels import clouds, integrands, scores

FloatArray = np.ndarray


class Packed(NamedTuple):
    """Parameters and kernels of one law, and the same law as weights, means and covariance matrices."""

    params: FloatArray
    draw: Any
    score: Any
    density: Any
    weights: FloatArray
    means: FloatArray
    covs: FloatArray

    @property
    def dim(self) -> int:
        return self.means.shape[1]


def isotropic(weights, means, stds) -> Packed:
    weights, means, stds = (np.asarray(value, dtype=float) for value in (weights, means, stds))
    covs = stds[:, None, None] ** 2 * np.eye(means.shape[1])
    params = scores.pack_isotropic(weights, means, stds**2)
    return Packed(params, integrands.draw_isotropic, scores.isotropic_score, scores.isotropic_density, weights, means, covs)


def full(weights, means, covs) -> Packed:
    weights, means, covs = (np.asarray(value, dtype=float) for value in (weights, means, covs))
    eigenvalues, columns = np.linalg.eigh(covs)
    params = scores.pack_full(weights, means, eigenvalues, np.ascontiguousarray(columns.transpose(0, 2, 1)))
    return Packed(params, integrands.draw_full, scores.full_score, scores.full_density, weights, means, covs)


def cloud(points) -> Packed:
    points = np.asarray(points, dtype=float)
    n, dim = points.shape
    covs = np.zeros((n, dim, dim))
    return Packed(
        clouds.pack_cloud(points), integrands.draw_cloud, clouds.cloud_score, clouds.cloud_density,
        np.full(n, 1.0 / n), points, covs,
    )  # fmt: skip


def _random_covs(count: int, dim: int, seed: int) -> FloatArray:
    factors = np.random.default_rng(seed).standard_normal((count, dim, dim))
    return factors @ factors.transpose(0, 2, 1) / dim + 0.05 * np.eye(dim)


LAWS: dict[str, Packed] = {
    "isotropic, one component, d = 1": isotropic([1.0], [[1.5]], [0.5]),
    "isotropic, two components, d = 1": isotropic([0.4, 0.6], [[-1.5], [1.0]], [0.3, 0.5]),
    "isotropic, three components, d = 3": isotropic(
        [0.2, 0.5, 0.3], [[-1.0, 0.5, 0.0], [1.0, 0.0, -1.0], [0.2, 2.0, 0.4]], [0.3, 0.9, 0.6]
    ),
    "isotropic, two components, d = 12": isotropic(
        [0.3, 0.7], np.random.default_rng(4).normal(0, 1, (2, 12)), [0.4, 0.8]
    ),
    "full, two components, d = 2": full(
        [0.4, 0.6], [[-2.0, 0.0], [2.0, 1.0]], [[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]]
    ),
    "full, three components, d = 4": full(
        [0.1, 0.2, 0.7], np.random.default_rng(0).normal(0, 2, (3, 4)), _random_covs(3, 4, 1)
    ),
    "cloud, 7 points, d = 2": cloud(np.random.default_rng(2).normal(0, 1, (7, 2))),
    "cloud, 65 points, d = 3": cloud(np.random.default_rng(3).normal(0, 1, (65, 3))),
}  # fmt: skip
"""The cloud of 65 points takes two whole tiles and a rest of one; the law in d = 12 has more coordinates than rows."""
