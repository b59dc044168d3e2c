"""A diffusion: the law of the data and the schedule that turns it into noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import time_within
from thermodiff._tasks import workspace
from thermodiff.accounting import Estimate
from thermodiff.accounting.moments import Plan
from thermodiff.accounting.nodes import fine
from thermodiff.accounting.quadrature import Scales
from thermodiff.densities import Density, Samples
from thermodiff.kernels.controls import adjust
from thermodiff.kernels.integrands import GRAM, as_rows, gram, integrate
from thermodiff.kernels.jit import LANES
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]

NODES_TOGETHER = 2
"""Nodes whose draws are made together: consecutive ones share counters of the random numbers, but their rows the cache."""
MOST_TOGETHER = 65536
"""Samples beyond which nodes are taken one by one, for the sake of memory."""


class Diffusion:
    """The forward process of ``data`` under ``noise``, with the exact score of every marginal p_t.

    Parameters
    ----------
    data : Gaussian, GaussianMixture or PointCloud
    noise : Schedule
    """

    def __init__(self, data: Density, noise: Schedule) -> None:
        if isinstance(data, Samples):
            raise TypeError("Diffusion: Samples have no score; use PointCloud for the empirical law, or a LearnedDiffusion.")
        if not isinstance(data, Density):
            raise TypeError(f"Diffusion: data must be a density (GaussianMixture, ...), got {type(data).__name__}.")
        if not isinstance(noise, Schedule):
            raise TypeError(f"Diffusion: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
        self.data = data
        self.noise = noise

    def __repr__(self) -> str:
        return f"Diffusion({self.data!r}, {self.noise!r})"

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.data.dim

    @property
    def second_moment(self) -> float:
        """E|x_0|^2."""
        return self.data.second_moment

    def conditional_moment(self, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> FloatArray:
        """E|c|^2 with c = sigma times the score of x given its component; (...) as alpha and sigma."""
        return self.data.conditional_moment(alpha, sigma)

    @property
    def scales(self) -> Scales:
        """What the quadrature error rests on."""
        return self.data.scales

    @property
    def clusters(self) -> None:
        """Draws are independent."""
        return

    @property
    def about(self) -> dict[str, Any]:
        """Header of the ledger."""
        record = {"data": self.data.label, "noise": self.noise.to_dict(), "schedule": self.noise.name}
        return {**record, "score": "exact", "dim": self.data.dim}

    def _kernel(self, t: float) -> dict[str, float]:
        t = time_within(t, self.noise.t_end)
        return {"alpha": float(self.noise.alpha(t)), "sigma": float(self.noise.sigma(t))}

    def score(self, x: npt.ArrayLike, t: float) -> FloatArray:
        """grad log p_t at points (n, d)."""
        return self.data.score(x, **self._kernel(t))

    def log_prob(self, x: npt.ArrayLike, t: float) -> FloatArray:
        """log p_t at points (n, d), closed form; nats."""
        return self.data.log_prob(x, **self._kernel(t))

    def velocity(self, x: npt.ArrayLike, t: float) -> FloatArray:
        """v = f - D grad log p_t at points (n, d): the probability-flow velocity dx/dt."""
        x = np.asarray(x, dtype=np.float64)
        return float(self.noise.drift_rate(t)) * x - float(self.noise.diffusivity(t)) * self.score(x, t)

    def window(
        self, lam: tuple[float, float] | None = None, times: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """The log-SNR window of an account.

        Raises
        ------
        ValueError
            Where the entropy grows without bound towards the data and no window is given.
        """
        window = accounting_window(self.noise, self.data.singular, self.data.label, lam, times)
        if self.data.singular:
            _require_resolution(self.data, window[1])
        return window

    @property
    def precision(self) -> float:
        """Relative precision of the score."""
        return float(np.finfo(np.float64).eps)

    @property
    def concurrent(self) -> bool:
        """The kernels release the GIL."""
        return True

    def products(self, divergence: str | None = None) -> tuple[str, ...]:
        """Names of the rows of `gram`."""
        if divergence == "hutchinson":
            raise ValueError('Diffusion: divergence="hutchinson" is for networks; here the divergence is always exact.')
        return ("div", "logp", *self.data.component_names, *GRAM, *self.data.conditional_names)

    def gram(
        self, key: npt.NDArray[np.uint32], node: int, row: Row, samples: int, divergence: str | None = None
    ) -> FloatArray:
        """The rows of `products` for the samples of the nodes from ``node`` on, (m, products, samples)."""
        law, blocks, count = self.data.law, -(-samples // LANES), len(self.products(divergence))
        out = np.empty((len(row.lam), self.dim + blocks * count, LANES))
        scalars, conditional = np.stack([row.alpha, row.sigma], axis=1), bool(self.data.conditional_names)
        gram(law.draw, law.score, conditional, key, 0, blocks, node, scalars, law.params, out)
        return as_rows(out, self.dim, count)[:, :, :samples]

    def integrate(
        self,
        key: npt.NDArray[np.uint32],
        nodes: slice,
        row: Row,
        plan: Plan,
        weights: FloatArray,
        divergence: str | None,
        sums: FloatArray,
    ) -> FloatArray:
        """Add the weighted values of every sample at ``nodes`` to ``sums``; see `thermodiff.accounting.measure.Source`."""
        law, (values, samples) = self.data.law, sums.shape
        blocks, scalars = -(-samples // LANES), np.stack([row.alpha, row.sigma], axis=1)
        together = NODES_TOGETHER if samples <= MOST_TOGETHER else 1
        work = workspace("gram", (together, self.dim + blocks * len(self.products(divergence)), LANES))
        out, statistics = workspace("values", sums.shape), np.empty((len(weights), values, 2))
        integrate(
            law.draw, law.score, bool(self.data.conditional_names), adjust, key, nodes.start, scalars, law.params,
            *plan.arguments(nodes), weights, work, out, sums, statistics,
        )  # fmt: skip
        return statistics

    def fixed_rows(self, window: tuple[float, float], total: Estimate | None) -> dict[str, Estimate]:
        """Excess and housekeeping, which theory fixes: v is a gradient, so the whole of the total is excess."""
        return {} if total is None else {"excess": total, "housekeeping": Estimate(0.0, 0.0)}

    def check(self, window: tuple[float, float], key: npt.NDArray[np.uint32]) -> Callable[[], Estimate]:
        """The oracle in the same window, with draws of its own."""
        return partial(_oracle, self, window, [int(word) for word in key])


def accounting_window(
    noise: Schedule,
    singular: bool,
    label: str,
    lam: tuple[float, float] | None,
    times: tuple[float, float] | None,
) -> tuple[float, float]:
    """`Schedule.window`, refusing the default where the entropy has no limit."""
    window = noise.window(lam, times)
    stated = lam is not None or (times is not None and times[0] > 0.0)
    if not stated and (noise.diverges or singular):
        cause = noise.name if noise.diverges else label
        raise ValueError(
            f"the entropy production of {cause} grows without bound towards the data; "
            "state the window, e.g. lam=(-8, 8) or times=(0.01, 1)."
        )
    return window


def _require_resolution(data: Density, lam: float) -> None:
    """Refuse noise (sigma / alpha = exp(-lam / 2)) so small beside the data that float64 loses it in alpha x_0 + sigma z."""
    most = -2.0 * float(np.log(RESOLUTION * np.sqrt(data.second_moment))) if data.second_moment > 0.0 else np.inf
    if lam > most:
        raise ValueError(
            f"at lam = {lam:g} the noise is below {RESOLUTION:g} of the size of the points, where float64 cannot resolve "
            f"the score of {data.label}; end the window at lam = {np.floor(10.0 * most) / 10.0:g} or lower."
        )


RESOLUTION = 1e-9
"""Noise over data that can be told from rounding: the score then has seven digits."""


def oracle(
    system: Diffusion,
    *,
    lam: tuple[float, float] | None = None,
    times: tuple[float, float] | None = None,
    rng: Any = 0,
) -> Estimate:
    """The entropy production in a window without any use of the score.

    By the balance of entropy, total = h(p_T) - h(p_0) + medium, where the medium needs second moments only.  For VP,
    StraightLine and Cosine this is KL(p_0 || p_eq) - KL(p_T || p_eq).  The entropies at both ends come from quadrature
    (few components in d <= 2) or from quasi-random draws of their own.

    Parameters
    ----------
    system : Diffusion
    lam, times : (float, float), optional
        The window, as for `account`.
    rng : int, SeedSequence or Generator
        Seed of the quasi-random draws.

    Returns
    -------
    Estimate
        In nats.
    """
    if not isinstance(system, Diffusion):
        raise TypeError(f"oracle: it needs a Diffusion with an exact score, got {type(system).__name__}.")
    return _oracle(system, system.window(lam, times), rng)


def _oracle(system: Diffusion, window: tuple[float, float], rng: Any) -> Estimate:
    row = system.noise.at(np.array(window))
    stream = np.random.SeedSequence(rng, spawn_key=(7,)) if isinstance(rng, int | list) else rng
    generator = np.random.default_rng(stream)
    medium = medium_integral(system.noise, window, system.second_moment, system.dim)
    noisy, clean = (system.data.entropy(alpha=float(row.alpha[k]), sigma=float(row.sigma[k]), rng=generator) for k in (0, 1))
    return Estimate(float(noisy.value - clean.value + medium), float(np.hypot(noisy.error, clean.error)))


def medium_integral(noise: Schedule, window: tuple[float, float], second_moment: float, dim: int) -> float:
    """Entropy given to the bath in a window, from E|x_0|^2 alone; nats."""
    lam, weights = fine(*window)
    row = noise.at(lam)
    q = -2.0 * row.growth / row.sigma
    moment = row.alpha**2 * second_moment + row.sigma**2 * dim
    return float(weights @ (0.5 * q * (q * moment + row.sigma * dim)))


def noise_kl(data: Density, noise: Schedule, lam: float, rng: Any = 0) -> Estimate:
    """KL(p_T || prior) at log-SNR ``lam``, in nats; the prior is the equilibrium, or N(0, sigma_T**2) without one."""
    row = noise.at(np.array([lam]))
    alpha, sigma = float(row.alpha[0]), float(row.sigma[0])
    width = noise.equilibrium_std or sigma
    entropy = data.entropy(alpha=alpha, sigma=sigma, rng=rng)
    moment = alpha**2 * data.second_moment + sigma**2 * data.dim
    cross = 0.5 * data.dim * np.log(2.0 * np.pi * width**2) + 0.5 * moment / width**2
    return Estimate(float(cross) - entropy.value, entropy.error)
