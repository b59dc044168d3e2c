"""The flow of one point by implicit steps, for points whose flow is stiff.

In y = x / alpha the flow to the noise is dy/dv = -s / 2 with the variance v = exp(-lam) of the noise: it runs down the
density.  Where two components k and l are equally probable it runs from both sides onto the surface between them, and the
point slides along that surface until noise has blurred the two.  Such a point returns to the surface at the rate

    L = (v / 2) (sum_k p_k |g_k|^2 - |s|^2)      per unit of lam,  with the scores g_k of the components,

which for two components is (v / 8) |g_1 - g_2|^2: at R widths from components of other shapes, or in the middle of a gap of
R widths, up to R^2 / 32.  An explicit method takes steps of a few 1 / L, however smooth the path is; an implicit one follows
the path, and its cost hardly depends on R.

The coordinates are those of `thermodiff.integrate.dense`: u = (y - c) / rho, rho^2 = v + the smallest variance of the data.

Reference: Radau IIA of order 5, Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.8, as in SciPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff.densities.entropy import Part
from thermodiff.kernels.adaptive import DONE, EXHAUSTED, FIRST, LONGEST, LOST

FloatArray = npt.NDArray[np.float64]

EASE = 30.0
"""Tolerances over those of an explicit step.  SciPy estimates the error of a formula of third order within, far above that
of the result: with this factor ln p = -290, -6,837 and -14,485 were met to 4e-8, 4e-8 and 3e-7 nats at rtol = 1e-8."""
DISTANT = 0.01
"""Relative error of a coordinate over that of its width: what is 100 widths away and more need not be known to 1e-10."""
ROUNDING = 100.0 * float(np.finfo(np.float64).eps)
"""Relative error of a step that is allowed in any case; SciPy takes no smaller one."""
MOST_STEPS = 4000
"""Steps of a point before it is given up: four times what was needed at 4,500 widths, some ten seconds in d = 100."""
PRESENT = 1e-30
"""Probability of a component below which it is left out."""
HARMLESS = 5.0
"""L below which explicit steps are not shorter than they are anyway."""
SLOPES, CALL = 450, 6e5
"""Slopes of implicit steps for unit lam, and the calls for a slope of many points: as all prices in multiplications of a
product of matrices, ten of which take a nanosecond."""
WORTHWHILE = 0.5
"""Price that is left, of what it was, for points to go: another may be as stiff a little later."""


class Terms(NamedTuple):
    """What slope and Jacobian are made of, for the components that count at a point, in units of rho."""

    rate: float
    p: FloatArray
    scores: FloatArray
    """g_k, (k, d)."""
    score: FloatArray
    inverse: FloatArray
    """1 / V_k, (k, d) or (k, 1)."""
    pulls: FloatArray
    """-g_k in the principal axes of k, (k, d)."""
    axes: FloatArray | None


class Point:
    """du/dlam of one point, the divergence of that, and their Jacobian; ``part`` is centred."""

    def __init__(self, part: Part) -> None:
        self._means, self._variances, self._axes = part.means, part.variances, part.axes
        self._logw, self._narrow = np.log(part.weights), float(part.variances.min())
        self.dim = part.means.shape[1]
        self._repeats = self.dim // part.variances.shape[1]
        """Directions that share a variance."""
        if part.axes is not None:
            self._rows = part.axes.reshape(-1, self.dim)
            self._centres = np.einsum("kij,kj->ki", part.axes, part.means)

    def terms(self, lam: float, u: FloatArray) -> Terms:
        noise = np.exp(-lam)
        square, variances = self._narrow + noise, self._variances + noise
        inverse, rho = square / variances, np.sqrt(square)
        places = (
            u - self._means / rho if self._axes is None else (self._rows @ u).reshape(-1, self.dim) - self._centres / rho
        )
        pulls = places * inverse
        logits = self._logw - 0.5 * self._repeats * np.sum(np.log(variances), axis=1) - 0.5 * np.vecdot(places, pulls)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        here = np.flatnonzero(~(p < PRESENT))
        p, pulls = p[here], pulls[here]
        axes = None if self._axes is None else self._axes[here]
        scores = -pulls if axes is None else -np.einsum("kij,ki->kj", axes, pulls)
        return Terms(0.5 * noise / square, p, scores, p @ scores, inverse[here], pulls, axes)

    def stiffness(self, lam: float, u: FloatArray) -> float:
        """L above."""
        it = self.terms(lam, u)
        return it.rate * float(it.p @ np.vecdot(it.scores - it.score, it.scores))

    def __call__(self, lam: float, state: FloatArray) -> FloatArray:
        u = state[:-1]
        it = self.terms(lam, u)
        divergence = self.dim + it.p @ self._curls(it) - it.score @ it.score
        return it.rate * np.append(u + it.score, divergence)

    def _curls(self, it: Terms) -> FloatArray:
        """|g_k|^2 - tr 1 / V_k, whose mean is div s + |s|^2."""
        return np.vecdot(it.scores, it.scores) - self._repeats * np.sum(it.inverse, axis=1)

    def jacobian(self, lam: float, state: FloatArray) -> FloatArray:
        """Derivatives of the slope, the last row those of the divergence, which nothing depends on."""
        dim = self.dim
        it = self.terms(lam, state[:-1])
        apart = it.scores - it.score
        hessian = (apart.T * it.p) @ apart
        # -C_k^-1 g_k, from the principal axes.
        twice = it.inverse * it.pulls
        if it.axes is None:
            hessian[np.diag_indices(dim)] -= it.p @ it.inverse[:, 0]
        else:
            for p, axes, inverse in zip(it.p, it.axes, it.inverse, strict=True):
                hessian -= (axes.T * (p * inverse)) @ axes
            twice = np.einsum("kij,ki->kj", it.axes, twice)
        bend = (it.p * self._curls(it)) @ apart + 2.0 * (it.p @ twice - hessian @ it.score)
        out = np.zeros((dim + 1, dim + 1))
        out[:dim, :dim] = it.rate * (np.eye(dim) + hessian)
        out[dim, :dim] = it.rate * bend
        return out


def flow(
    point: Point, state: FloatArray, span: tuple[float, float], rtol: float, atol: float
) -> tuple[int, float, int, FloatArray]:
    """Carry u and the integral of its divergence, (d + 1), from span[0] down to span[1].

    Returns
    -------
    how it ended (DONE, EXHAUSTED, LOST), the lam reached, the steps taken, and the state there.
    """
    from scipy.integrate import Radau

    high, low = span
    # SciPy limits the mean square over the state: the same share as for the explicit steps.
    share = EASE / np.sqrt(point.dim + 1)
    taken = 0
    # Where a state is out of range its slope is not a number, and the step is refused.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        solver = Radau(
            point, high, state, low, first_step=min(FIRST, high - low), max_step=LONGEST, jac=point.jacobian,
            rtol=max(DISTANT * rtol * share, ROUNDING), atol=(rtol + atol) * share,
        )  # fmt: skip
        while solver.status == "running":
            if taken >= MOST_STEPS:
                return EXHAUSTED, float(solver.t), taken, solver.y
            solver.step()
            taken += 1
    return (LOST if solver.status == "failed" else DONE), float(solver.t), taken, solver.y


def price(components: int, dim: int, axes: bool) -> float:
    """Of implicit steps of one point for unit lam, as measured: calls, products with a vector, linear equations."""
    return SLOPES * (3.0 * CALL + 12.0 * components * (dim**2 if axes else dim) + 0.25 * dim**3)


def apart(stiffness: FloatArray, explicit: FloatArray, alone: float) -> npt.NDArray[np.intp]:
    """Which points to carry alone, in rising order: those that make the whole cheapest, if it becomes much cheaper.

    Parameters
    ----------
    stiffness : (n,) array
        L of each point.
    explicit : (n + 1,) array
        Price of explicit steps for unit lam and unit L, of 0 ... n points together.
    alone : float
        Price of implicit steps of one point for unit lam.
    """
    order = np.argsort(-stiffness, kind="stable")
    worst = np.append(np.maximum(stiffness[order], HARMLESS), 0.0)
    prices = alone * np.arange(order.size + 1) + explicit[::-1] * worst
    many = int(np.argmin(prices[: 1 + np.count_nonzero(stiffness > HARMLESS)]))
    return np.sort(order[: many if prices[many] < WORTHWHILE * prices[0] else 0])
