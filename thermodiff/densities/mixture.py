"""Gaussians and Gaussian mixtures, isotropic or with full covariances."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import array, count
from thermodiff.densities.base import Density, Law
from thermodiff.densities.entropy import Part
from thermodiff.kernels import integrands, scores

FloatArray = npt.NDArray[np.float64]

MOST_WITH_ROWS = 16
"""Components up to which each gets control variates of its own; beyond, fitting them costs more than it saves."""


class GaussianMixture(Density):
    """p(x) = sum_k w_k N(x; m_k, C_k).

    Parameters
    ----------
    means : (K, d) array
    stds : (K,) array or float, optional
        Standard deviations of isotropic components.
    covs : (K, d, d) array, optional
        Full covariances, symmetric and positive definite.  Give either ``stds`` or ``covs``.
    weights : (K,) array, optional
        Positive or zero, summing to one; equal weights by default.

    Raises
    ------
    ValueError
        For wrong shapes, a variance that is not positive, weights that do not sum to one.
    """

    def __init__(
        self,
        means: npt.ArrayLike,
        stds: npt.ArrayLike | None = None,
        covs: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        self.means = array("means", means, "(K, d)", 2)
        components, dim = self.means.shape
        self.weights = _weights(weights, components)
        if (stds is None) == (covs is None):
            raise ValueError("GaussianMixture: give either stds= (isotropic components) or covs= (full covariances).")
        axes: FloatArray | None = None
        if covs is None:
            variances = _variances(stds, components)[:, None]
        else:
            variances, axes = _principal_axes(covs, components, dim)
        kept = self.weights > 0.0
        part = Part(self.weights[kept], self.means[kept], variances[kept], None if axes is None else axes[kept])
        self._parts = part
        self._dim = dim
        rows = 2 * part.weights.size if 1 < part.weights.size <= MOST_WITH_ROWS else 0
        if part.axes is None:
            params = scores.pack_isotropic(part.weights, part.means, part.variances[:, 0])
            self.law = Law(params, integrands.draw_isotropic, scores.isotropic_score, scores.isotropic_density, rows)
        else:
            params = scores.pack_full(part.weights, part.means, part.variances, part.axes)
            self.law = Law(params, integrands.draw_full, scores.full_score, scores.full_density, rows)

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def label(self) -> str:
        kind = "isotropic" if self._parts.axes is None else "full covariances"
        return f"GaussianMixture: {self.weights.size} components in d = {self.dim}, {kind}"

    def parts(self) -> Part:
        return self._parts

    def mean(self) -> FloatArray:
        return self._parts.weights @ self._parts.means

    def covariance(self) -> FloatArray:
        weights, means, variances, axes = self._parts
        centred = means - self.mean()
        between = np.einsum("k,ki,kj->ij", weights, centred, centred)
        if axes is None:
            return between + float(weights @ variances[:, 0]) * np.eye(self.dim)
        return between + np.einsum("k,kj,kja,kjb->ab", weights, variances, axes, axes)

    def sample(self, n: int, rng: Any = None) -> FloatArray:
        n = count("n", n)
        weights, means, variances, axes = self._parts
        generator = np.random.default_rng(rng)
        k = generator.choice(weights.size, size=n, p=weights / weights.sum())
        offset = np.sqrt(variances[k]) * generator.standard_normal((n, self.dim))
        if axes is not None:
            offset = np.einsum("nj,njc->nc", offset, axes[k])
        return means[k] + offset


class Gaussian(GaussianMixture):
    """N(mean, std**2) or N(mean, cov).

    Parameters
    ----------
    mean : (d,) array
    std : float, optional
        Standard deviation of every coordinate.
    cov : (d, d) array, optional
        Covariance matrix.  Give either ``std`` or ``cov``.
    """

    def __init__(self, mean: npt.ArrayLike, std: float | None = None, cov: npt.ArrayLike | None = None) -> None:
        mean = array("mean", mean, "(d,)", 1)
        if (std is None) == (cov is None):
            raise ValueError("Gaussian: give either std= or cov=.")
        if cov is None:
            super().__init__(mean[None, :], stds=np.atleast_1d(np.asarray(std)))
        else:
            super().__init__(mean[None, :], covs=array("cov", cov, "(d, d)", 2)[None, :, :])

    @property
    def label(self) -> str:
        return f"Gaussian in d = {self.dim}"


def paper_mixture(dim: int) -> GaussianMixture:
    """The five-component mixture of the "Neural Entropy" experiments, for dim 3, 6 or 9; 2 is that of its notebook."""
    table = json.loads(files("thermodiff.densities").joinpath("paper_mixtures.json").read_text())
    names = {len(entry["means"][0]): entry for entry in table.values()}
    dim = count("dim", dim)
    if dim not in names:
        raise ValueError(f"paper_mixture: got dim={dim!r}; the published mixtures have dim {sorted(names)}.")
    entry = names[dim]
    return GaussianMixture(entry["means"], stds=entry["stds"], weights=entry["weights"])


def _weights(weights: npt.ArrayLike | None, components: int) -> FloatArray:
    if weights is None:
        return np.full(components, 1.0 / components)
    result = array("weights", weights, "(K,)", 1)
    if result.shape != (components,):
        raise ValueError(f"weights must have shape ({components},), one per row of means, got {result.shape}.")
    if np.any(result < 0.0):
        raise ValueError(f"weights must not be negative, got {result.min():g}.")
    if abs(result.sum() - 1.0) > 1e-6:
        raise ValueError(f"weights must sum to one, got a sum of {result.sum():.8g}; divide them by it.")
    return result / result.sum()


def _variances(stds: Any, components: int) -> FloatArray:
    if np.ndim(stds) == 0:
        stds = np.full(components, stds)
    result = array("stds", stds, "(K,)", 1)
    if result.shape != (components,):
        raise ValueError(f"stds must have shape ({components},), one per row of means, got {result.shape}.")
    if np.any(result <= 0.0):
        raise ValueError(f"stds must be positive, got {result.min():g}; for points of no width use PointCloud.")
    with np.errstate(over="ignore", under="ignore"):
        variances = result**2
    if not np.all((variances > 0.0) & (variances < np.inf)):
        raise ValueError(f"stds must have squares within the range of float64, got {result.min():g} ... {result.max():g}.")
    return variances


def _principal_axes(covs: Any, components: int, dim: int) -> tuple[FloatArray, FloatArray]:
    result = array("covs", covs, "(K, d, d)", 3)
    if result.shape != (components, dim, dim):
        raise ValueError(f"covs must have shape ({components}, {dim}, {dim}) to fit means, got {result.shape}.")
    largest = np.abs(result).max(axis=(1, 2))
    asymmetry = np.abs(result - result.transpose(0, 2, 1)).max(axis=(1, 2))
    if np.any(asymmetry > 1e-8 * largest):
        raise ValueError(f"covs must be symmetric; the largest difference to the transpose is {asymmetry.max():g}.")
    eigenvalues, columns = np.linalg.eigh(result)
    # Below this an eigenvalue is rounding: that of a singular matrix may come out on either side of zero.
    if np.any(eigenvalues <= dim * np.finfo(np.float64).eps * eigenvalues[:, -1:]):
        raise ValueError(
            f"covs must be positive definite, beyond rounding, got an eigenvalue of {eigenvalues.min():g}; "
            "for a law in fewer dimensions, leave the others out or widen it a little."
        )
    return eigenvalues, np.ascontiguousarray(columns.transpose(0, 2, 1))
