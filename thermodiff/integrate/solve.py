"""The reverse process and the probability flow of a diffusion, in log-SNR.

The family dx = (f + c s) dt + sqrt(2 e) dW has (c, e) = (-D, 0) for the probability flow and (-2 D, D) with dt < 0 for the
reverse process.  With kappa = d ln alpha / d lam and D dt = -(sigma^2 / 2) dlam it becomes

    probability flow     dx = (kappa x + (sigma^2 / 2) s) dlam
    reverse process      dx = (kappa x + sigma^2 s) dlam + sigma dW,     lam rising,

finite for every schedule, also where f and D are infinite.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, choice, count, points, seed_words
from thermodiff._progress import Progress, Report, reporting
from thermodiff.densities.base import Law
from thermodiff.diffusion import Diffusion
from thermodiff.integrate import adaptive
from thermodiff.integrate.path import Path
from thermodiff.kernels import march, philox
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import at_points, blocks_per_task, over_blocks

FloatArray = npt.NDArray[np.float64]

RULES = {"euler": march.EULER, "heun": march.HEUN, "rk4": march.RK4, "exponential": march.EULER}
STEPS, RTOL, ATOL = 500, 1e-6, 1e-8


def reverse(
    system: Diffusion,
    n: int,
    *,
    steps: int = 500,
    method: Literal["heun", "euler", "exponential"] = "heun",
    times: npt.ArrayLike | None = None,
    lam: tuple[float, float] | None = None,
    start: Literal["marginal", "equilibrium"] = "marginal",
    denoise: bool = True,
    rng: Any = None,
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Path:
    """Generate data from noise by the reverse stochastic process with the exact score.

    Parameters
    ----------
    system : Diffusion
    n : int
        Number of paths.
    steps : int
        Steps in all, uniform in log-SNR between the asked times.
    method : {"heun", "euler", "exponential"}
        Step rule; weak order 2, 1 and 1, strong order 1.  "exponential" holds the posterior mean E[x_0 | x] fixed over a
        step and is exact otherwise (ancestral sampling): stable however few the steps, and of the exact law for data that
        are one point.
    times : (T,) array, optional
        Descending times at which to keep the state; by default the two ends of the window.
    lam : (float, float), optional
        Log-SNR window (low, high) instead of the schedule's own, where ``times`` does not say.
    start : {"marginal", "equilibrium"}
        Law of the first state: p_T, or the equilibrium of the schedule.
    denoise : bool
        End with the step to the posterior mean E[x_0 | x], where the last time is the data end of the window.
    rng : int, SeedSequence, Generator or None
        Fixes start and noise.
    executor, chunk
        Where to run, and blocks of 256 paths per task; neither changes a bit of the result.
    progress : callable, False or None
        Called as ``progress(done, tasks)``.  By default a run of more than two seconds in a terminal shows a bar.

    Returns
    -------
    Path
    """
    system = require_diffusion("reverse", system)
    n = count("n", n)
    choice("method", method, ("heun", "euler", "exponential"))
    choice("start", start, ("marginal", "equilibrium"))
    key = seed_words(rng)
    at, kept = _edges(_asked(system, times, lam, descending=True), steps)
    first = _start(system, start, n, float(at[0]), key)
    top = system.noise.window(lam=lam)[1]
    with reporting(progress, "reverse") as report:
        return _solve(system, first, at, kept, method, 1.0, key, denoise, top, executor, chunk, report)


def probability_flow(
    system: Diffusion,
    x: npt.ArrayLike | int,
    *,
    steps: int | None = None,
    method: Literal["rk4", "heun", "euler", "exponential", "dopri5"] = "rk4",
    rtol: float | None = None,
    atol: float | None = None,
    times: npt.ArrayLike | None = None,
    lam: tuple[float, float] | None = None,
    start: Literal["marginal", "equilibrium"] = "marginal",
    denoise: bool = True,
    rng: Any = None,
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Path:
    """Carry points along the probability flow, whose marginals are those of the diffusion.

    Parameters
    ----------
    system : Diffusion
    x : (n, d) array or int
        Points at the first of ``times``, or a number of paths to start from ``start`` at the noise end.
    steps : int, optional
        Steps in all, uniform in log-SNR between the asked times; 500 unless the steps are adaptive.
    method : {"rk4", "heun", "euler", "exponential", "dopri5"}
        Step rule, of order 4, 2, 1 and 1; "exponential" is exact but for the posterior mean, which a step holds fixed
        (DDIM).  "dopri5" is the pair of Dormand and Prince of order 5(4), whose steps in log-SNR follow from ``rtol`` and
        ``atol``.  The 256 paths of a block share them.
    rtol, atol : float, optional
        Error that a step of "dopri5" may make in the root mean square over the coordinates of any path: ``atol + rtol |x|``
        of each, ``atol`` in data units; 1e-6 and 1e-8.
    times : (T,) array, optional
        Monotone times at which to keep the state; by default from the noise end of the window to its data end.  They do
        not change the steps of "dopri5", which interpolates to fourth order.
    lam, start, denoise, rng, executor, chunk, progress
        As for `reverse`; ``denoise`` acts only when the flow ends at the data end of the window.

    Returns
    -------
    Path

    Raises
    ------
    DivergenceError
        Where a path leaves the finite numbers, or takes too many steps.
    """
    system = require_diffusion("probability_flow", system)
    choice("method", method, (*RULES, "dopri5"))
    choice("start", start, ("marginal", "equilibrium"))
    _require_own(method, steps, rtol, atol)
    asked = _asked(system, times, lam, descending=False)
    key = None
    if isinstance(x, int | np.integer):
        key = seed_words(rng)
        first = _start(system, start, count("n", int(x)), float(asked[0]), key)
    else:
        first = np.ascontiguousarray(points("x", x, system.dim).T)
    top = system.noise.window(lam=lam)[1]
    if method == "dopri5":
        rtol, atol = RTOL if rtol is None else rtol, ATOL if atol is None else atol
        with reporting(progress, "probability_flow") as report:
            states = adaptive.flow(system, first, asked, rtol, atol, executor, chunk, report=report)
        return _path(system, states, asked, key, denoise, top)
    at, kept = _edges(asked, STEPS if steps is None else steps)
    with reporting(progress, "probability_flow") as report:
        return _solve(system, first, at, kept, method, 0.0, key, denoise, top, executor, chunk, report)


def require_diffusion(name: str, system: Any) -> Diffusion:
    """``system`` if it has an exact score."""
    if not isinstance(system, Diffusion):
        raise TypeError(f"{name}: it needs a Diffusion, got {type(system).__name__}.")
    return system


def _require_own(method: str, steps: int | None, rtol: float | None, atol: float | None) -> None:
    """Refuse what the method would ignore."""
    if method == "dopri5" and steps is not None:
        raise ValueError(f'steps={steps!r} with method="dopri5", whose steps follow from the error; pass rtol= and atol=.')
    if method != "dopri5" and not (rtol is None and atol is None):
        given = " and ".join(f"{name}={value!r}" for name, value in (("rtol", rtol), ("atol", atol)) if value is not None)
        raise ValueError(f'{given} with method={method!r}, whose steps are fixed; pass steps=, or method="dopri5".')


def _asked(
    system: Diffusion, times: npt.ArrayLike | None, lam: tuple[float, float] | None, *, descending: bool
) -> FloatArray:
    """The lam of the asked times, within the window."""
    low, high = system.noise.window(lam=lam)
    if times is None:
        return np.array([low, high])
    asked_times = np.asarray(times, dtype=np.float64)
    change = np.diff(asked_times)
    if asked_times.ndim != 1 or asked_times.size < 2 or not (np.all(change < 0) or np.all(change > 0)):
        raise ValueError(f"times must be at least two strictly monotone numbers, got {times!r}.")
    if descending and change[0] > 0:
        raise ValueError("times must descend (from noise at t_end to data at 0) for the reverse process; reverse them.")
    if asked_times.min() < 0.0 or asked_times.max() > system.noise.t_end:
        raise ValueError(f"times must lie in [0, {system.noise.t_end:g}], got {times!r}.")
    asked = np.clip(system.noise.lam(asked_times), low, high)
    if np.any(np.diff(asked) == 0.0):
        raise ValueError(f"times {times!r} fall together at the edge of the window; pass a wider lam=.")
    return asked


def _edges(asked: FloatArray, steps: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Step edges in lam, and the indices of those that were asked for."""
    steps = count("steps", steps)
    lengths = np.abs(np.diff(asked))
    counts = np.maximum(np.round(steps * lengths / lengths.sum()).astype(np.int64), 1)
    pieces = [np.linspace(a, b, k + 1)[:-1] for a, b, k in zip(asked[:-1], asked[1:], counts, strict=True)]
    return np.concatenate([*pieces, asked[-1:]]), np.concatenate([[0], np.cumsum(counts)])


def _start(system: Diffusion, start: str, n: int, lam: float, key: npt.NDArray[np.uint32]) -> FloatArray:
    """First states, (d, n)."""
    row = system.noise.at(np.array([lam]))
    alpha, sigma = float(row.alpha[0]), float(row.sigma[0])
    if start == "equilibrium":
        width = system.noise.equilibrium_std
        if width is None:
            raise ValueError(f'{system.noise.name} has no equilibrium; use start="marginal".')
        return width * over_blocks(partial(_normal_blocks, key, system.dim), n, None, None)
    return system.data.draw(key, 0, alpha, sigma, n)[0]


def _normal_blocks(key: npt.NDArray[np.uint32], dim: int, first: int, last: int) -> FloatArray:
    out = np.empty((dim, (last - first) * LANES))
    philox.noise(key, first, last, 0, philox.START, out)
    return out


def _solve(
    system: Diffusion,
    first: FloatArray,
    at: FloatArray,
    kept: npt.NDArray[np.int64],
    method: str,
    noise: float,
    key: npt.NDArray[np.uint32] | None,
    denoise: bool,
    top: float,
    executor: Executor | None,
    chunk: int | None,
    report: Report,
) -> Path:
    """March ``first`` (d, n) over the edges ``at``; ``noise`` is 1 for the reverse process, 0 for the flow."""
    chunk = blocks_per_task(first.shape[1], at.size * system.dim) if chunk is None else count("chunk", chunk)
    table = (_exponential_table if method == "exponential" else _table)(system, at, noise)
    slots = np.full(at.size - 1, -1)
    slots[kept[1:] - 1] = np.arange(1, kept.size)
    words = np.zeros(2, np.uint32) if key is None else key
    task = partial(_march_blocks, system.data.law, words, RULES[method], *table, slots, first)
    return _path(system, over_blocks(task, first.shape[1], executor, chunk, report), at[kept], key, denoise, top)


def _path(
    system: Diffusion,
    states: FloatArray,
    asked: FloatArray,
    key: npt.NDArray[np.uint32] | None,
    denoise: bool,
    top: float,
) -> Path:
    """The record of ``states`` (T, d, n) at the asked lam, denoised where they end at the data end ``top``."""
    states = np.ascontiguousarray(states.transpose(0, 2, 1))
    denoised = bool(denoise) and bool(asked[-1] > asked[0]) and bool(np.isclose(asked[-1], top))
    if denoised:
        states[-1] = _posterior_mean(system, states[-1], float(asked[-1]))
    times = system.noise.time(asked)
    _require_finite(states, times, key)
    return Path(times, asked, states, None if key is None else (int(key[0]), int(key[1])), denoised)


def _table(system: Diffusion, at: FloatArray, noise: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows, lengths and amplitudes of the steps between the edges ``at``, as `march.march` takes them."""
    steps = np.diff(at)
    rows = np.stack([_row(system, at[:-1] + share * steps, noise) for share in (0.0, 0.5, 1.0)], axis=1)
    middle = system.noise.at(at[:-1] + 0.5 * steps)
    return np.ascontiguousarray(rows), steps, noise * middle.sigma * np.sqrt(np.abs(steps))


def _exponential_table(system: Diffusion, at: FloatArray, noise: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`_table` of steps that hold the posterior mean fixed, as Euler steps of length one.

    With sigma^2 s = alpha x0 - x and x0 fixed both equations are linear.  From lam to lam' = lam + h they are solved by

        x' = (alpha' / alpha) (x + (1 - exp(-(1 + noise) h / 2)) sigma^2 s) + noise sigma' sqrt(1 - exp(-h)) xi.
    """
    here, there = system.noise.at(at[:-1]), system.noise.at(at[1:])
    ratio, variance, share = there.alpha / here.alpha, here.sigma**2, -np.expm1(-0.5 * (1.0 + noise) * np.diff(at))
    rows = np.stack([here.alpha, variance, ratio - 1.0, ratio * share * variance], axis=-1)[:, None]
    return rows, np.ones(at.size - 1), noise * there.sigma * np.sqrt(np.abs(share))


def _row(system: Diffusion, lam: FloatArray, noise: float) -> FloatArray:
    """(alpha, sigma^2, a, c) of the field a x + c s at each lam."""
    row = system.noise.at(lam)
    variance = row.sigma**2
    return np.stack([row.alpha, variance, row.growth, 0.5 * (1.0 + noise) * variance], axis=-1)


def _march_blocks(
    law: Law,
    key: npt.NDArray[np.uint32],
    rule: int,
    rows: FloatArray,
    steps: FloatArray,
    amplitudes: FloatArray,
    slots: npt.NDArray[np.int64],
    start: FloatArray,
    first: int,
    last: int,
) -> FloatArray:
    dim, n = start.shape
    states = np.empty((int(slots.max()) + 1, dim, (last - first) * LANES))
    inside = start[:, first * LANES : min(last * LANES, n)]
    states[0, :, : inside.shape[1]] = inside
    states[0, :, inside.shape[1] :] = inside[:, -1:]
    march.march(law.score, law.params, key, rule, first, last, rows, steps, amplitudes, slots, states)
    return states


def _posterior_mean(system: Diffusion, x: FloatArray, lam: float) -> FloatArray:
    """E[x_0 | x_t] = (x + sigma^2 s) / alpha (Tweedie)."""
    row = system.noise.at(np.array([lam]))
    alpha, variance = float(row.alpha[0]), float(row.sigma[0] ** 2)
    law = system.data.law
    return at_points(law.score, law.params, (alpha, variance, 1.0 / alpha, variance / alpha), x, system.dim)


def _require_finite(states: FloatArray, times: FloatArray, key: npt.NDArray[np.uint32] | None) -> None:
    lost = ~np.isfinite(states).all(axis=(1, 2))
    if lost.any():
        k = int(np.argmax(lost))
        paths = int(np.count_nonzero(~np.isfinite(states[k]).all(axis=1)))
        seed = "" if key is None else f" (key {key[0]}, {key[1]})"
        raise DivergenceError(
            f"{paths} of {states.shape[1]} paths left the finite numbers by t = {times[k]:.4g}{seed}; "
            "take more steps, or start nearer to the data."
        )
