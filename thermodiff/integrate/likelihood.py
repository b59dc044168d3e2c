"""Log-densities by the probability flow: the change of volume along the path to the noise, and the density there.

Along the flow d log p / dlam = -div(kappa x + (sigma^2 / 2) s).  Where the score is exact the result is the density that is
known anyway: what differs is what the integration adds, and what a prior in place of the marginal at the noise end does.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import choice, points, time_within
from thermodiff._progress import Progress, Report, reporting
from thermodiff.diffusion import Diffusion
from thermodiff.integrate import adaptive, dense
from thermodiff.integrate.solve import require_diffusion

FloatArray = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-16
"""(sigma / alpha)^2 over the smallest variance of the data below which p_t is p_0 to rounding."""


def log_prob(
    system: Diffusion,
    x: npt.ArrayLike,
    *,
    t: float = 0.0,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    method: Literal["dopri5"] = "dopri5",
    prior: Literal["marginal", "equilibrium"] = "marginal",
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> FloatArray:
    """Log-density of the data, or of p_t, by the probability flow with the exact divergence.

    The flow starts beyond the data edge of the schedule's window, where the smoothing of p_0 is below rounding for the
    narrowest component, so nothing is left to account for; a point cloud has no density without smoothing and needs
    ``t > 0``.  Up to 256 paths share their steps, so to the tolerance (and no further) the value at one point depends on
    those beside it.

    Mixtures with full covariances in many dimensions are carried by products of matrices, see `thermodiff.integrate.dense`,
    unless there are so many points that the compiled flow is faster.  Points far from all components have a stiff flow;
    where others would wait for them they go on alone by implicit steps, see `thermodiff.integrate.stiff`, for one to a
    few seconds each.

    Parameters
    ----------
    system : Diffusion
    x : (n, d) array
        Points, in data units.
    t : float
        Time of the density asked for; 0 is the data.
    rtol, atol : float
        Tolerances of a step, in nats: the volume may err by ``atol + rtol max(1, |its logarithm|)`` and a coordinate by
        ``atol + rtol`` of the narrowest width of p_t.
    method : {"dopri5"}
        Dormand and Prince's pair of order 5(4), with steps in log-SNR; by products of matrices, theirs of order 8(5, 3);
        for stiff points Radau IIA.
    prior : {"marginal", "equilibrium"}
        Density at the noise end of the window: the exact p_T, or the equilibrium that a sampler starts from.
    executor, chunk
        Where to run, and blocks of 256 points per task; neither changes a bit of the result.  (Products of matrices do, by
        rounding, where a worker's BLAS has another number of threads.)
    progress : callable, False or None
        Called as ``progress(done, tasks)``.  By default a run of more than two seconds in a terminal shows a bar.

    Returns
    -------
    (n,) array
        In nats.

    Raises
    ------
    ValueError
        For a point cloud at t = 0; for an equilibrium that the schedule has not.
    DivergenceError
        Where a flow leaves the finite numbers or takes too many steps.

    References
    ----------
    Chen et al., Neural Ordinary Differential Equations, arXiv 1806.07366; Song et al., arXiv 2011.13456, appendix D.2.
    """
    system, noise = require_diffusion("log_prob", system), system.noise
    choice("method", method, ("dopri5",))
    choice("prior", prior, ("marginal", "equilibrium"))
    adaptive.tolerances(rtol, atol)
    x, t = points("x", x, system.dim), time_within(t, noise.t_end)
    if prior == "equilibrium" and noise.equilibrium_std is None:
        raise ValueError(f'{noise.name} has no equilibrium; use prior="marginal".')
    if system.data.singular and t == 0.0:
        raise ValueError("log_prob: a point cloud has no density at t = 0; pass t > 0, e.g. t=0.01, for that of p_t.")
    low, high, factor = _stretch(system, t)
    start = np.concatenate([factor * x.T, np.zeros((1, x.shape[0]))])
    volume = np.full(x.shape[0], system.dim * np.log(factor))
    if high > low:
        with reporting(progress, "log_prob") as report:
            start = _flow(system, start, (high, low), rtol, atol, executor, chunk, report)
        volume += start[-1]
    return volume + _prior(system, prior, np.ascontiguousarray(start[:-1].T), low)


def _flow(
    system: Diffusion,
    start: FloatArray,
    span: tuple[float, float],
    rtol: float,
    atol: float,
    executor: Executor | None,
    chunk: int | None,
    report: Report,
) -> FloatArray:
    part = system.data.parts()
    if dense.suits(part, start.shape[1]):
        return dense.flow(system, start, span, rtol, atol, executor, chunk, report)
    narrow = float(part.variances.min())
    return adaptive.flow(system, start, np.array(span), rtol, atol, executor, chunk, narrow, report, part)[1]


def _stretch(system: Diffusion, t: float) -> tuple[float, float, float]:
    """Noise and data end of the flow in lam, and the factor that takes x from t to its data end.

    Above lam with (sigma / alpha)^2 = NEGLIGIBLE times the smallest variance the flow is the scaling by alpha alone.
    """
    noise, data = system.noise, system.data
    low, high = noise.window()[0], float(noise.lam(t))
    if not data.singular:
        top = -float(np.log(NEGLIGIBLE * data.parts().variances.min()))
        if high > top:
            noise.window(lam=(low, top))
            return low, top, float(noise.at(np.array([top])).alpha[0] / noise.alpha(t))
    if high <= low:
        return high, high, 1.0
    return *noise.window(lam=(low, high)), 1.0


def _prior(system: Diffusion, prior: str, x: FloatArray, lam: float) -> FloatArray:
    """Log-density at the noise end."""
    if prior == "equilibrium":
        width = system.noise.equilibrium_std
        assert width is not None
        return -0.5 * np.sum((x / width) ** 2, axis=1) - system.dim * np.log(np.sqrt(2.0 * np.pi) * width)
    row = system.noise.at(np.array([lam]))
    return system.data.log_prob(x, alpha=float(row.alpha[0]), sigma=float(row.sigma[0]))
