"""What a law of x_0 offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import finite_number, points
from thermodiff.accounting import Estimate
from thermodiff.accounting.quadrature import Gaussians, Pairs, Scales
from thermodiff.densities.entropy import Part, smoothed_entropy
from thermodiff.kernels.integrands import CONDITIONAL, draws
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import at_points, over_blocks

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """The compiled form of a law: flat parameters and the kernels that read them."""

    params: FloatArray
    draw: Any
    score: Any
    density: Any
    component_rows: int = 0
    """Zero-mean rows that the score field writes after divergence and log-density, two for each component."""


RARE = 0.01
"""Weight below which a component gets no control variates of its own."""


MOST_PAIRED = 16
"""Components that are taken two by two for the quadrature error, the heaviest first."""


def _pairs(part: Part) -> Pairs:
    """Pairs of components with weights in proportion to both, together the entropy of the choice among all."""
    heaviest = np.argsort(-part.weights, kind="stable")[:MOST_PAIRED]
    one, two = (heaviest[side] for side in np.triu_indices(heaviest.size, 1))
    apart = part.means[one] - part.means[two]
    square = np.sum(apart**2, axis=1)
    distinct = square > 0.0
    one, two, apart, square = one[distinct], two[distinct], apart[distinct], square[distinct]
    both = part.weights[one] * part.weights[two]
    choice = -float(np.sum(part.weights * np.log(part.weights))) / np.log(2.0)
    along = [_variance_along(part, k, apart) / square for k in (one, two)]
    return Pairs(both * choice / both.sum() if both.size else both, 0.25 * square, 0.5 * (along[0] + along[1]))


def _variance_along(part: Part, k: npt.NDArray[np.intp], apart: FloatArray) -> FloatArray:
    """apart . covariance . apart for component ``k[i]`` and row i of ``apart``."""
    turned = apart if part.axes is None else np.einsum("pij,pj->pi", part.axes[k], apart)
    return np.sum(part.variances[k] * turned**2, axis=1)


class Density(ABC):
    """A law of x_0 in R^d whose score under Gaussian smoothing is known exactly.

    Arrays of points are (n, d) float64; log-densities and entropies are in nats.
    """

    law: Law

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension d."""

    @property
    @abstractmethod
    def label(self) -> str:
        """One line for headers."""

    def __repr__(self) -> str:
        return f"<{self.label}>"

    @property
    def singular(self) -> bool:
        """Whether the law has directions of no width, so that its entropy production grows without bound."""
        return False

    @abstractmethod
    def mean(self) -> FloatArray:
        """E x, (d,)."""

    @abstractmethod
    def covariance(self) -> FloatArray:
        """Covariance matrix, (d, d)."""

    @abstractmethod
    def sample(self, n: int, rng: Any = None) -> FloatArray:
        """``n`` independent draws, (n, d); ``rng`` as for `numpy.random.default_rng`."""

    @abstractmethod
    def parts(self) -> Part:
        """Components: weights, means, covariances in their principal axes."""

    @property
    def second_moment(self) -> float:
        """E|x|^2; a ValueError where it overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            moment = float(np.trace(self.covariance()) + self.mean() @ self.mean())
        if not np.isfinite(moment):
            raise ValueError(f"the second moment of {self.label} overflows; rescale the data to unit size.")
        return moment

    @property
    def component_names(self) -> tuple[str, ...]:
        """The component rows of the score: "share" and "square" of each, or "rare" where none could be fitted to them."""
        pairs = (("share", "square") if weight >= RARE else ("rare", "rare") for weight in self.parts().weights)
        return tuple(name for pair in pairs for name in pair)[: self.law.component_rows]

    @property
    def conditional_names(self) -> tuple[str, ...]:
        """The inner products with c, the score given the component that x was drawn from, of which an account has use.

        None where there are component rows: E[c | x] = b, and E[|c|^2 | x] is |b|^2 + sigma div b and multiples of the
        responsibilities, so that c adds nothing but noise to them.  (Of rare components it would say more, by few draws:
        decision 3.)
        """
        return () if self.law.component_rows else CONDITIONAL

    def conditional_moment(self, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> FloatArray:
        """E|sigma grad log p_t(x | k)|^2, k the component that x was drawn from; (...) as alpha and sigma."""
        part = self.parts()
        alpha2, sigma2 = (np.square(np.asarray(value))[..., None, None] for value in (alpha, sigma))
        ratio = sigma2 / (alpha2 * np.broadcast_to(part.variances, part.means.shape) + sigma2)
        return ratio.sum(axis=-1) @ part.weights

    @property
    def scales(self) -> Scales:
        """What the quadrature error rests on: the Gaussian of the same moments, the components, pairs of these."""
        spectrum = np.maximum(np.linalg.eigvalsh(self.covariance()), 0.0)
        part = self.parts()
        # Components without width are all alike: one stands for all.
        distinct = slice(None) if np.any(part.variances) else slice(1)
        weights = part.weights[distinct]
        variances = np.broadcast_to(part.variances, part.means.shape)[distinct]
        parts = Gaussians(weights / weights.sum(), variances)
        return Scales(Gaussians(np.ones(1), spectrum[None, :]), parts, _pairs(part))

    def draw(
        self, key: npt.NDArray[np.uint32], node: int, alpha: float, sigma: float, samples: int, start: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """The draws x = alpha x_0 + sigma z of an account at a node, and c = sigma grad log p_t(x | component); (d, n).

        They are those of the ``samples`` from ``start`` on, a multiple of 256.
        """
        skip = start // LANES
        pair = over_blocks(partial(_draw_blocks, self.law, key, node, self.dim, alpha, sigma, skip), samples, None, None)
        return pair[0], pair[1]

    def log_prob(self, x: npt.ArrayLike, *, alpha: float = 1.0, sigma: float = 0.0) -> FloatArray:
        """log density of alpha x_0 + sigma z at points (n, d); nats, (n,)."""
        self._require_kernel(alpha, sigma, "log_prob")
        x = points("x", x, self.dim)
        return at_points(self.law.density, self.law.params, (alpha, sigma * sigma, 0.0, 0.0), x, 2)[:, 0]

    def score(self, x: npt.ArrayLike, *, alpha: float = 1.0, sigma: float = 0.0) -> FloatArray:
        """Gradient of the log density of alpha x_0 + sigma z at points (n, d); (n, d)."""
        self._require_kernel(alpha, sigma, "score")
        x = points("x", x, self.dim)
        return at_points(self.law.score, self.law.params, (alpha, sigma * sigma, 0.0, 1.0), x, self.dim)

    def score_divergence(self, x: npt.ArrayLike, *, alpha: float = 1.0, sigma: float = 0.0) -> FloatArray:
        """Divergence of `score`, exact; (n,)."""
        self._require_kernel(alpha, sigma, "score_divergence")
        x = points("x", x, self.dim)
        return at_points(self.law.score, self.law.params, (alpha, sigma * sigma, 0.0, 1.0), x, self.dim + 1)[:, self.dim]

    def entropy(self, *, alpha: float = 1.0, sigma: float = 0.0, rng: Any = 0) -> Estimate:
        """Differential entropy of alpha x_0 + sigma z, in nats.

        Closed form for one component, adaptive quadrature for few components in d <= 2, else randomised quasi-Monte Carlo.
        """
        self._require_kernel(alpha, sigma, "entropy")
        return smoothed_entropy(self.parts(), self._responsibility_entropy, alpha, sigma, rng)

    def _responsibility_entropy(self, x: FloatArray, alpha: float, sigma: float) -> FloatArray:
        return at_points(self.law.density, self.law.params, (alpha, sigma * sigma, 0.0, 0.0), x, 2)[:, 1]

    def _require_kernel(self, alpha: float, sigma: float, what: str) -> None:
        if finite_number("sigma", sigma) < 0.0 or finite_number("alpha", alpha) < 0.0:
            raise ValueError(f"{what}: alpha and sigma must not be negative, got {alpha:g} and {sigma:g}.")
        if self.singular and not sigma > 0.0:
            raise ValueError(f"{what}: a point cloud has a density only after smoothing; pass sigma > 0.")


def _draw_blocks(
    law: Law, key: npt.NDArray[np.uint32], node: int, dim: int, alpha: float, sigma: float, skip: int, first: int, last: int
) -> FloatArray:
    out = np.empty((2, dim, (last - first) * LANES))
    draws(law.draw, key, skip + first, skip + last, node, np.array([[alpha, sigma]]), law.params, out[0], out[1])
    return out
