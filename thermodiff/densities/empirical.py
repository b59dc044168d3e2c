"""Laws given by points: PointCloud is the empirical law with its exact score, Samples stands for an unknown law."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import count
from thermodiff._check import points as check_points
from thermodiff.densities.base import Density, Law
from thermodiff.densities.entropy import Part
from thermodiff.kernels import clouds, integrands, philox
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import over_blocks

FloatArray = npt.NDArray[np.float64]


class PointCloud(Density):
    """The law that puts 1/n on each of n points: what a model that memorises its training set generates.

    Its score under smoothing is known exactly; the points have no width, so entropies need a stated window.

    Parameters
    ----------
    points : (n, d) array
    """

    def __init__(self, points: npt.ArrayLike) -> None:
        given = check_points("points", points)
        packed = clouds.pack_cloud(given)
        self.law = Law(packed, integrands.draw_cloud, clouds.cloud_score, clouds.cloud_density)
        # A view of what the kernels read: one copy, and none of the caller's array, which may change.
        self.points: FloatArray = packed[-given.size :].reshape(given.shape)
        self.points.setflags(write=False)  # what is formed of them once would be stale

    @property
    def dim(self) -> int:
        return self.points.shape[1]

    @property
    def label(self) -> str:
        return f"PointCloud: {self.points.shape[0]} points in d = {self.dim}"

    @property
    def singular(self) -> bool:
        return True

    def parts(self) -> Part:
        n = self.points.shape[0]
        return Part(np.full(n, 1.0 / n), self.points, np.zeros((n, 1)), None)

    def score(self, x: npt.ArrayLike, *, alpha: float = 1.0, sigma: float = 0.0) -> FloatArray:
        self._require_kernel(alpha, sigma, "score")
        x = check_points("x", x, self.dim)
        square = float(np.max(np.abs(x))) * self._largest * alpha * self.dim
        if self.dim < WIDE or not square * np.finfo(np.float64).eps < PRECISE * sigma**2:
            return super().score(x, alpha=alpha, sigma=sigma)
        return self._score_by_products(x, alpha, sigma**2)

    def _score_by_products(self, x: FloatArray, alpha: float, variance: float) -> FloatArray:
        """|x - alpha p|^2 = |x|^2 - 2 alpha (x.p - alpha |p|^2 / 2), the sums over points as matrix products."""
        shifts = 0.5 * alpha * self._squares
        # In few parts of one size: each must read all points, and a product with few rows takes nearly as long as with many.
        most = max(HELD // len(self.points), FEWEST)
        size = math.ceil(len(x) / math.ceil(len(x) / most))
        result, totals = np.empty_like(x), np.empty(size)
        products = np.empty((size, len(self.points)))
        for first in range(0, len(x), size):
            part = x[first : first + size]
            held, out = products[: len(part)], result[first : first + size]
            np.matmul(part, self.points.T, out=held)
            clouds.soften(held, shifts, alpha / variance, totals)
            near = np.flatnonzero(held.max(axis=0) > clouds.NEGLIGIBLE)
            if 2 * near.size < len(self.points):
                # Fine noise sees few of the points, and the others add nothing to a float64.
                np.matmul(held[:, near], self.points[near], out=out)
            else:
                np.matmul(held, self.points, out=out)
            out *= (alpha / totals[: len(part)])[:, None]
            out -= part
            out /= variance
        return result

    @cached_property
    def _squares(self) -> FloatArray:
        return np.einsum("nd,nd->n", self.points, self.points)

    @cached_property
    def _largest(self) -> float:
        return float(max(self.points.max(), -self.points.min()))

    def mean(self) -> FloatArray:
        return self.points.mean(axis=0)

    def covariance(self) -> FloatArray:
        centred = self.points - self.mean()
        return centred.T @ centred / self.points.shape[0]

    def sample(self, n: int, rng: Any = None) -> FloatArray:
        return self.points[np.random.default_rng(rng).integers(self.points.shape[0], size=count("n", n))]


HELD, FEWEST = 2**23, 64
"""Products of queries and points that are held at a time, 64 MB; those of so many queries in any case."""
WIDE = 16
"""Dimension from which matrix products beat the kernel."""
PRECISE = 1e-11
"""What rounding may change in a log weight; where products would lose more, the kernel forms differences."""


class Samples:
    """Draws from a law that is not known: expectations only, no score.

    Sample i of an account starts from the same point at every node, and errors are by point, so that they tell how well
    the points represent the law that they came from.

    Parameters
    ----------
    points : (n, d) array
        At least two points.
    """

    def __init__(self, points: npt.ArrayLike) -> None:
        self.points = check_points("points", points)
        if self.points.shape[0] < 2:
            raise ValueError("Samples: got one point; errors need at least two.")

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.points.shape[1]

    @property
    def label(self) -> str:
        """One line for headers."""
        return f"Samples: {self.points.shape[0]} points in d = {self.dim}"

    def __repr__(self) -> str:
        return f"<{self.label}>"

    def mean(self) -> FloatArray:
        """Mean of the points, (d,)."""
        return self.points.mean(axis=0)

    def covariance(self) -> FloatArray:
        """Covariance of the points, (d, d), with denominator n."""
        centred = self.points - self.mean()
        return centred.T @ centred / self.points.shape[0]

    def sample(self, n: int, rng: Any = None) -> FloatArray:
        """``n`` of the points with replacement, (n, d)."""
        return self.points[np.random.default_rng(rng).integers(self.points.shape[0], size=count("n", n))]

    def draw(
        self, key: npt.NDArray[np.uint32], node: int, alpha: float, sigma: float, samples: int, start: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """The draws x = alpha x_0 + sigma z of an account at a node, and c = -z; (d, n) each.

        They are those of the ``samples`` from ``start`` on, a multiple of 256.
        """
        z = normals(key, node, self.dim, samples, philox.NOISE, start)
        clean = self.points[self.order(key, samples, start)].T
        return alpha * clean + sigma * z, -z

    def order(self, key: npt.NDArray[np.uint32], samples: int, start: int = 0) -> npt.NDArray[np.intp]:
        """Which point each of the ``samples`` from ``start`` on comes from."""
        # In an order of the key's own: fewer samples than points then take points from everywhere.
        order = np.random.default_rng(key).permutation(self.points.shape[0])
        return order[np.arange(start, start + samples) % order.size]


def probes(key: npt.NDArray[np.uint32], node: int, dim: int, samples: int, start: int = 0) -> FloatArray:
    """Normals (d, n) for random probes at a node, independent of those of the draws."""
    return normals(key, node, dim, samples, philox.PROBE, start)


def normals(key: npt.NDArray[np.uint32], step: int, dim: int, samples: int, purpose: int, start: int = 0) -> FloatArray:
    """Normals (d, n) of a step and a purpose, for the ``samples`` from ``start`` on, a multiple of 256."""
    return over_blocks(partial(_noise_blocks, key, step, dim, purpose, start // LANES), samples, None, None)


def _noise_blocks(
    key: npt.NDArray[np.uint32], step: int, dim: int, purpose: int, skip: int, first: int, last: int
) -> FloatArray:
    out = np.empty((dim, (last - first) * LANES))
    philox.noise(key, skip + first, skip + last, step, purpose, out)
    return out
