"""Laws given by points: PointCloud is the empirical law with its exact score, Samples stands for an unknown law."""

from __future__ import annotations

from functools import partial
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
        self.points = check_points("points", points)
        self.law = Law(
            clouds.pack_cloud(self.points), integrands.draw_cloud, clouds.cloud_score, clouds.cloud_density
        )  # fmt: skip

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

    def mean(self) -> FloatArray:
        return self.points.mean(axis=0)

    def covariance(self) -> FloatArray:
        centred = self.points - self.mean()
        return centred.T @ centred / self.points.shape[0]

    def sample(self, n: int, rng: Any = None) -> FloatArray:
        return self.points[np.random.default_rng(rng).integers(self.points.shape[0], size=count("n", n))]


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
        self, key: npt.NDArray[np.uint32], node: int, alpha: float, sigma: float, samples: int
    ) -> tuple[FloatArray, FloatArray]:
        """The draws x = alpha x_0 + sigma z of an account at a node, and c = -z; (d, n) each."""
        z = _normals(key, node, self.dim, samples, philox.NOISE)
        # In an order of the key's own: fewer samples than points then take points from everywhere.
        order = np.random.default_rng(key).permutation(self.points.shape[0])
        start = self.points[order[np.arange(samples) % order.size]].T
        return alpha * start + sigma * z, -z


def probes(key: npt.NDArray[np.uint32], node: int, dim: int, samples: int) -> FloatArray:
    """Normals (d, n) for random probes at a node, independent of those of the draws."""
    return _normals(key, node, dim, samples, philox.PROBE)


def _normals(key: npt.NDArray[np.uint32], node: int, dim: int, samples: int, purpose: int) -> FloatArray:
    return over_blocks(partial(_noise_blocks, key, node, dim, purpose), samples, None, None)


def _noise_blocks(key: npt.NDArray[np.uint32], node: int, dim: int, purpose: int, first: int, last: int) -> FloatArray:
    out = np.empty((dim, (last - first) * LANES))
    philox.noise(key, first, last, node, purpose, out)
    return out
